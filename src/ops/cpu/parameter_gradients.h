#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"

// Backward of the CPU's ops, what several of them need to read parameters and to sum their gradients over rows.
namespace bamba::cpu {

// The numbers of a weight as f32, in the order of memory; empty where it is absent.
inline std::vector<float> AsFloats(const Tensor& weight) {
  std::vector<float> floats(static_cast<size_t>(weight.size()));
  if (weight) Convert(weight.data(), weight.dtype(), floats.data(), Dtype::kF32, floats.size());
  return floats;
}

// Calls body(begin, end, sum) for blocks of rows that cover [0, rows), where sum [dw.size()] is the block's own share of the gradient dw, zero at first (null
// where dw is absent), then adds the shares to dw in the order of blocks. Blocks have one size, so the bits of dw do not depend on the number of threads.
template <typename Body>
void SumOverRows(ThreadPool& threads, int64_t rows, const Tensor& dw, const Body& body) {
  constexpr int64_t kBlock = 32, kStrip = 256;
  const int64_t blocks = (rows + kBlock - 1) / kBlock, n = dw.size();
  std::vector<float> sums(static_cast<size_t>(blocks * n));
  threads.For(blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; b++) body(b * kBlock, std::min(rows, (b + 1) * kBlock), dw ? sums.data() + b * n : nullptr);
  });
  threads.For(n, kStrip, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t i = begin; i < end; i++) dw.as<float>()[i] += sums[static_cast<size_t>(b * n + i)];
  });
}

}  // namespace bamba::cpu
