#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

// What the backward of the scan hands from its loop over sequences and heads to the code of each SIMD level.
namespace bamba::cpu {

// Inputs of one chunk as one head sees them: rows of x and dy [head_dim], B and C [state], of the activations themselves.
struct SsdChunk {
  int64_t rows;  // q, 1 … kSsdChunk
  const float *x, *b, *c;
  int64_t stride;  // between rows of x, B and C
  const float* dy;
  int64_t dy_stride;
  const float *step, *slope;  // [q] dt after bias, softplus and clamp, and its derivative by the raw value
  const float *bt, *g;        // of the chunk's group: Bᵀ [state, kSsdChunk] and C_t·B_s [q, kSsdChunk], zero beyond q
};

// Where its gradients go: rows of dx [head_dim], ddt, and the head's own shares of dB and dC [q, state], contiguous.
struct SsdChunkGrad {
  float* x;
  int64_t x_stride;
  float* dt;
  int64_t dt_stride;
  float *b, *c;
};

// Gradients of a head's parameters by one sequence.
struct SsdHeadSums {
  double dt_bias = 0, a_log = 0, d = 0;
};

struct SsdHead {
  int64_t head_dim, state;
  float a, d;  // a = −exp(A_log)
  SsdHeadSums* sums;
};

// Memory of one thread: states [head_dim, state], and matrices of a chunk.
struct SsdScratch {
  std::vector<float> raw, step, slope;     // [rows of the sequence]
  std::vector<float> checkpoints, states;  // several states each
  std::vector<float> z;                    // gradient of a state
  std::vector<float> xt, zb;               // [head_dim, kSsdChunk]  xᵀ, (Z B)ᵀ
  std::vector<float> v, u;                 // [kSsdChunk, state]
  std::vector<float> scaled;               // [kSsdChunk, head_dim]

  SsdScratch(int64_t head_dim, int64_t state) {
    const auto resize = [](std::vector<float>& numbers, int64_t n) { numbers.resize(static_cast<size_t>(n)); };
    resize(z, head_dim * state);
    for (auto* numbers : {&xt, &zb, &scaled}) resize(*numbers, kSsdChunk * head_dim);
    for (auto* numbers : {&v, &u}) resize(*numbers, kSsdChunk * state);
  }
};

}  // namespace bamba::cpu
