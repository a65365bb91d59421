#pragma once

#include "ops/cuda/state.cuh"

// The scan's operands as its kernels see them, and which kernel takes which sequence.
namespace bamba::cuda {

inline constexpr int kChunk = static_cast<int>(kSsdChunk);

// i mod n without a division where n is a power of two, as nearly always.
__device__ __forceinline__ uint32_t EntryOf(uint32_t i, uint32_t n) { return (n & (n - 1)) == 0 ? i & (n - 1) : i % n; }

template <typename T>
struct ScanOperands {
  MatrixView<const T> xbc, dt;
  MatrixView<T> y;
  int64_t rows;  // of the call
  const float *dt_bias, *a_log, *d;
  float dt_min, dt_max;
  int32_t heads, head_dim, state, heads_per_group;
  int32_t b_column, c_column, columns;  // of group 0's B and C in a row of xbc; of xbc
  // The slots; null where no state is kept.
  T *xbc_ring, *dt_ring;
  float* ssm;
  int64_t xbc_slot, xbc_token, dt_slot, dt_token, ssm_slot, ssm_boundary;  // strides
  uint32_t ring, boundaries;                                               // tokens of a slot's rings, its boundary states
  const DeviceSequence* sequences;

  __device__ int GroupOf(int head) const { return heads_per_group == heads ? 0 : head / heads_per_group; }
  __device__ bool Keeps(const DeviceSequence& s) const { return ssm != nullptr && s.slot >= 0; }
  // The kept tokens of a chunk lie one after the other: a ring's length is a multiple of a chunk's.
  __device__ T* KeptRow(const DeviceSequence& s, int64_t token) const {
    return xbc_ring + s.slot * xbc_slot + EntryOf(static_cast<uint32_t>(token), ring) * xbc_token;
  }
  __device__ T* KeptSteps(const DeviceSequence& s, int64_t token) const {
    return dt_ring + s.slot * dt_slot + EntryOf(static_cast<uint32_t>(token), ring) * dt_token;
  }
  // A token's inputs: of this call, or kept.
  __device__ const T* Row(const DeviceSequence& s, int64_t token) const {
    return token >= s.position ? xbc.Row(s.row + (token - s.position)) : KeptRow(s, token);
  }
  __device__ float RawStep(const DeviceSequence& s, int64_t token, int head) const {
    return ToFloat((token >= s.position ? dt.Row(s.row + (token - s.position)) : KeptSteps(s, token))[head]);
  }
  // S before token b, a chunk's first.
  __device__ float* Boundary(const DeviceSequence& s, int64_t b, int head) const {
    return ssm + s.slot * ssm_slot + EntryOf(static_cast<uint32_t>(b) / kChunk, boundaries) * ssm_boundary + static_cast<int64_t>(head) * head_dim * state;
  }
  // Whether the state before token b is one of the last that a sequence of `end` tokens keeps.
  __device__ bool KeepsBoundary(const DeviceSequence& s, int64_t b, int64_t end) const {
    return Keeps(s) && b / kChunk + static_cast<int64_t>(boundaries) > end / kChunk;
  }
};

// The operands of a convolution ahead of the scan, of four taps.
inline constexpr int kTaps = 4;
struct ConvOperands {
  MatrixView<const bf16> x;
  const float *w, *bias;  // [columns, kTaps], [columns] or null
  bf16* ring;             // null where no state is kept
  int64_t slot, token;    // strides
  uint32_t length;        // tokens, more than are read: a row's input is stored while others read those before it
  __device__ bf16* Kept(const DeviceSequence& s, int64_t t) const { return ring + s.slot * slot + EntryOf(static_cast<uint32_t>(t), length) * token; }
};

// The sequences that a launch is for: blockIdx.y counts them.
struct Picked {
  static constexpr int kMost = 256;
  bool all = true;  // sequence i is number i
  int32_t index[kMost];
  __device__ int operator()(int i) const { return all ? i : index[i]; }
};

// exp2 and log2 as the special function unit has them: errors of some 2⁻²².
__device__ __forceinline__ float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline constexpr float kLog2E = 1.4426950408889634f;

// A head's numbers, before the batch is known.
struct HeadNumbers {
  float bias, rate, d;  // rate: −exp(A_log) log2(e)
};
template <typename T>
__device__ __forceinline__ HeadNumbers NumbersOf(const ScanOperands<T>& s, int head) {
  return {s.dt_bias[head], -__expf(s.a_log[head]) * kLog2E, s.d[head]};
}
// softplus(raw + bias), clamped; NaN stays NaN.
__device__ __forceinline__ float StepOf(float raw, float bias, float low, float high) {
  const float x = raw + bias;
  const float softplus = x > 20 ? x : log1pf(__expf(x));
  const float most = softplus > high ? high : softplus;
  return most < low ? low : most;
}
// log2 of a token's decay. Below 2^−192 it is 0 in f32 whatever the number, and sums of a chunk's logs keep their digits.
__device__ __forceinline__ float LogDecay(float step, float rate) { return fmaxf(step * rate, -192.0f); }

// Each queues its kernel for the first `count` sequences of `picked`.
template <typename T>
void ScanAnyShape(State& device, const ScanOperands<T>& operands, const Picked& picked, int64_t count);
// Keeps the last inputs of the picked sequences; after all who read the older ones.
template <typename T>
void KeepScanInputs(State& device, const ScanOperands<T>& operands, const Picked& picked, int64_t count, int64_t most_rows);
// For heads of 64 with a state of 128, addresses at multiples of 16 bytes. The first two are for sequences of one row, with the numbers of ScanChunks, and keep
// their inputs; the second one is for the first `count` sequences, and false where it isn't a Hopper.
void ScanOneRow(State& device, const ScanOperands<bf16>& operands, const Picked& picked, int64_t count);
bool ConvScanOneRow(State& device, const ScanOperands<bf16>& operands, const ConvOperands& conv, int64_t count);
void ScanChunks(State& device, const ScanOperands<bf16>& operands, const Picked& picked, int64_t count);
bool ScanChunksOnHopper(State& device, const ScanOperands<bf16>& operands, const Picked& picked, int64_t count);  // the same; false where it isn't a Hopper

}  // namespace bamba::cuda
