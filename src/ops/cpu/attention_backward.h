#pragma once

#include <cstdint>
#include <vector>

#include "ops/batch.h"

// What the backward of attention hands from its loop over sequences, heads and tiles to the code of each SIMD level.
namespace bamba::cpu {

// Queries and keys in a tile. Tiles of both start at multiples of it, so that every tile of keys before a query's own is whole.
inline constexpr int64_t kTile = kKvBlock;

// Rows of [head_dim] numbers.
template <typename Number>
struct HeadRows {
  Number* data;
  int64_t stride;
  HeadRows From(int64_t row) const { return {data + row * stride, stride}; }
};

// One query head of one sequence and the key head that it reads; row 0 is the sequence's first.
struct AttentionHead {
  int64_t rows, head_dim;
  float scale;
  HeadRows<const float> q, k, v, y, dy;
  HeadRows<float> dq, dk, dv;
  float *lse, *delta;  // [rows] log Σ_s exp(scale q_t·k_s), and y_t·dy_t
};

// Of one thread: two transposed tiles [head_dim, kTile].
struct AttentionScratch {
  std::vector<float> first, second;
  explicit AttentionScratch(int64_t head_dim) : first(static_cast<size_t>(head_dim * kTile)), second(first) {}
};

}  // namespace bamba::cpu
