#include <algorithm>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

constexpr int kSlab = 32;  // inputs of one chain of multiply-adds

template <typename T>
__device__ __forceinline__ float4 Load4(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float4*>(p);
  } else {
    const uint2 bits = *reinterpret_cast<const uint2*>(p);
    const T* v = reinterpret_cast<const T*>(&bits);
    return {ToFloat(v[0]), ToFloat(v[1]), ToFloat(v[2]), ToFloat(v[3])};
  }
}
// Four numbers from p[k] on of a row of `size`; zeros past its end. `aligned`: p is and size is a multiple of four.
template <typename T>
__device__ __forceinline__ float4 Load4(const T* p, int64_t k, int64_t size, bool aligned) {
  if (aligned) return k < size ? Load4(p + k) : float4{};
  return {k < size ? ToFloat(p[k]) : 0, k + 1 < size ? ToFloat(p[k + 1]) : 0, k + 2 < size ? ToFloat(p[k + 2]) : 0, k + 3 < size ? ToFloat(p[k + 3]) : 0};
}

// ---- Few rows: a warp makes kOutputs outputs of kRows rows. Each lane has a slab of a weight's row; the weights pass through shared memory, where 16-byte
// copies that lie side by side in memory become slabs. ----

constexpr int kWarps = 8, kOutputs = 4, kRound = 32 * kSlab;

template <typename W>
struct FewRows {
  static constexpr int kStages = sizeof(W) == 4 ? 2 : 4;
  static constexpr int kPitch = kSlab * static_cast<int>(sizeof(W)) + 16;  // so that eight lanes read 16 bytes each from different banks
  static constexpr int kStage = 32 * kPitch;
  static constexpr int kShared = kWarps * kStages * kStage;
};

template <typename X, typename W, int kRows>
__global__ void __launch_bounds__(kWarps * 32) FewRowsKernel(Product p, bool aligned_x, bool aligned_w) {
  using Few = FewRows<W>;
  extern __shared__ __align__(16) char shared[];
  __shared__ float slab_sums[kWarps][kOutputs * kRows][33];
  LetNextBegin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t output = (int64_t{blockIdx.x} * kWarps + warp) * kOutputs, row = int64_t{blockIdx.y} * kRows;
  char* const stages = shared + warp * (Few::kStages * Few::kStage);
  const int64_t slabs = DivideUp(p.in, kSlab), rounds = DivideUp(p.in, kRound), steps = output < p.out ? rounds * kOutputs : 0;

  // Step by step: a round of inputs, in it one output after the other.
  auto begin_copy = [&](int64_t step) {
    if (step < steps) {
      constexpr int kVector = 16 / sizeof(W);
      const int64_t first = step / kOutputs * kRound, o = min(output + step % kOutputs, p.out - 1);
      const W* const w = static_cast<const W*>(p.w) + o * p.in;
      char* const stage = stages + step % Few::kStages * Few::kStage;
#pragma unroll
      for (int i = 0; i < kRound / kVector / 32; i++) {
        const int v = (i * 32 + lane) * kVector;
        const int64_t k = first + v;
        char* const to = stage + v / kSlab * Few::kPitch + v % kSlab * static_cast<int>(sizeof(W));
        if (aligned_w) {
          CopyAsync(to, k < p.in ? w + k : w, k < p.in);
        } else {
          for (int j = 0; j < kVector; j++) reinterpret_cast<W*>(to)[j] = k + j < p.in ? w[k + j] : FromFloat<W>(0);
        }
      }
    }
    CommitCopies();
  };
  for (int s = 0; s < Few::kStages - 1; s++) begin_copy(s);
  WaitForPrevious();

  float x[kRows][kSlab];
  float total = 0;  // lane o·kRows + r: of output o and row r
  for (int64_t step = 0; step < steps; step++) {
    begin_copy(step + Few::kStages - 1);
    const int64_t first = step / kOutputs * kRound + lane * kSlab;
    const int o = static_cast<int>(step % kOutputs);
    if (o == 0) {
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const X* const from = static_cast<const X*>(p.x) + min(row + r, p.rows - 1) * p.x_stride;
#pragma unroll
        for (int k = 0; k < kSlab; k += 4) {
          const float4 v = Load4(from, first + k, p.in, aligned_x);
          x[r][k] = v.x, x[r][k + 1] = v.y, x[r][k + 2] = v.z, x[r][k + 3] = v.w;
        }
      }
    }
    WaitForCopies<Few::kStages - 1>();
    __syncwarp();
    const W* const slab = reinterpret_cast<const W*>(stages + step % Few::kStages * Few::kStage + lane * Few::kPitch);
    float sum[kRows] = {};
#pragma unroll
    for (int k = 0; k < kSlab; k += 4) {
      const float4 w = Load4(slab + k);
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        sum[r] = fmaf(x[r][k], w.x, sum[r]);
        sum[r] = fmaf(x[r][k + 1], w.y, sum[r]);
        sum[r] = fmaf(x[r][k + 2], w.z, sum[r]);
        sum[r] = fmaf(x[r][k + 3], w.w, sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; r++) slab_sums[warp][o * kRows + r][lane] = sum[r];
    __syncwarp();
    if (o == kOutputs - 1) {
      const int count = static_cast<int>(min(slabs - step / kOutputs * 32, int64_t{32}));
      if (lane < kOutputs * kRows)
        for (int l = 0; l < count; l++) total += slab_sums[warp][lane][l];
      __syncwarp();
    }
  }
  WaitForCopies<0>();
  const int64_t r = row + lane % kRows, o = output + lane / kRows;
  if (lane < kOutputs * kRows && o < p.out && r < p.rows) StoreResult(p, r, o, total);
}

// ---- Many rows: a block makes kTile rows by kTile outputs, a thread kEach × kEach of them, in quarters of 4 × 4 that lie kTile / 2 apart. A stage is a slab
// of inputs, transposed. ----

template <typename T, int kEach>
__device__ __forceinline__ void LoadStage(float4 (&to)[kEach / 2], const T* data, int64_t stride, int64_t first_row, int64_t rows, int64_t k, int64_t in,
                                          bool aligned) {
  constexpr int kTile = 16 * kEach;
#pragma unroll
  for (int i = 0; i < kEach / 2; i++) {
    const int v = i * 256 + threadIdx.x;
    const int64_t row = min(first_row + v % kTile, rows - 1);
    to[i] = Load4(data + row * stride, k + v / kTile * 4, in, aligned);
  }
}
template <int kEach>
__device__ __forceinline__ void StoreStage(float* to, const float4 (&from)[kEach / 2]) {
  constexpr int kTile = 16 * kEach, kPitch = kTile + 4;
#pragma unroll
  for (int i = 0; i < kEach / 2; i++) {
    const int v = i * 256 + threadIdx.x;
    float* const at = to + v / kTile * 4 * kPitch + v % kTile;
    at[0] = from[i].x, at[kPitch] = from[i].y, at[2 * kPitch] = from[i].z, at[3 * kPitch] = from[i].w;
  }
}

template <int kEach>
constexpr int kTiledShared = 2 * 2 * kSlab * (16 * kEach + 4) * 4;

template <typename X, typename W, int kEach>
__global__ void __launch_bounds__(256) ManyRowsKernel(Product p, bool aligned_x, bool aligned_w) {
  constexpr int kTile = 16 * kEach, kPitch = kTile + 4, kStage = kSlab * kPitch;
  extern __shared__ __align__(16) char shared[];
  float* const xs = reinterpret_cast<float*>(shared);  // [2][kSlab][kPitch]
  float* const ws = xs + 2 * kStage;
  LetNextBegin();
  const int64_t first_output = int64_t{blockIdx.x} * kTile, first_row = int64_t{blockIdx.y} * kTile;
  const X* const x = static_cast<const X*>(p.x);
  const W* const w = static_cast<const W*>(p.w);
  const int tx = threadIdx.x % 16 * 4, ty = threadIdx.x / 16 * 4;
  const int64_t slabs = DivideUp(p.in, kSlab);
  float4 next_x[kEach / 2], next_w[kEach / 2];
  float total[kEach][kEach] = {};
  LoadStage<W, kEach>(next_w, w, p.in, first_output, p.out, 0, p.in, aligned_w);
  WaitForPrevious();
  LoadStage<X, kEach>(next_x, x, p.x_stride, first_row, p.rows, 0, p.in, aligned_x);
  StoreStage<kEach>(xs, next_x);
  StoreStage<kEach>(ws, next_w);
  __syncthreads();
  for (int64_t s = 0; s < slabs; s++) {
    const bool more = s + 1 < slabs;
    if (more) {
      LoadStage<X, kEach>(next_x, x, p.x_stride, first_row, p.rows, (s + 1) * kSlab, p.in, aligned_x);
      LoadStage<W, kEach>(next_w, w, p.in, first_output, p.out, (s + 1) * kSlab, p.in, aligned_w);
    }
    const float* const xk = xs + s % 2 * kStage;
    const float* const wk = ws + s % 2 * kStage;
    float sum[kEach][kEach] = {};
#pragma unroll 8
    for (int k = 0; k < kSlab; k++) {
      float a[kEach], b[kEach];
#pragma unroll
      for (int i = 0; i < kEach; i += 4) {
        *reinterpret_cast<float4*>(a + i) = *reinterpret_cast<const float4*>(xk + k * kPitch + i / 4 * (kTile / 2) + ty);
        *reinterpret_cast<float4*>(b + i) = *reinterpret_cast<const float4*>(wk + k * kPitch + i / 4 * (kTile / 2) + tx);
      }
#pragma unroll
      for (int i = 0; i < kEach; i++)
#pragma unroll
        for (int j = 0; j < kEach; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
#pragma unroll
    for (int i = 0; i < kEach; i++)
#pragma unroll
      for (int j = 0; j < kEach; j++) total[i][j] += sum[i][j];
    if (more) {
      StoreStage<kEach>(xs + (s + 1) % 2 * kStage, next_x);
      StoreStage<kEach>(ws + (s + 1) % 2 * kStage, next_w);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int64_t row = first_row + i / 4 * (kTile / 2) + ty + i % 4;
#pragma unroll
    for (int j = 0; j < kEach; j++) {
      const int64_t output = first_output + j / 4 * (kTile / 2) + tx + j % 4;
      if (row < p.rows && output < p.out) StoreResult(p, row, output, total[i][j]);
    }
  }
}

template <typename X, typename W>
void Run(State& state, const Product& p) {
  const auto aligned = [](const void* data, int64_t stride, int64_t in, size_t size, int64_t vector) {
    return reinterpret_cast<uintptr_t>(data) % (static_cast<size_t>(vector) * size) == 0 && stride % vector == 0 && in % vector == 0;
  };
  const bool aligned_x = aligned(p.x, p.x_stride, p.in, sizeof(X), 4);
  const auto few = [&](auto kernel, int64_t rows) {
    const bool aligned_w = aligned(p.w, p.in, p.in, sizeof(W), static_cast<int64_t>(16 / sizeof(W)));
    Launch(state, kernel, dim3(static_cast<unsigned>(DivideUp(p.out, kWarps * kOutputs)), static_cast<unsigned>(DivideUp(p.rows, rows))), kWarps * 32,
           FewRows<W>::kShared, p, aligned_x, aligned_w);
  };
  if (p.rows == 1) return few(FewRowsKernel<X, W, 1>, 1);
  if (p.rows <= 8) return few(FewRowsKernel<X, W, 4>, 4);
  const bool aligned_w = aligned(p.w, p.in, p.in, sizeof(W), 4);
  const auto many = [&](auto kernel, int64_t tile, size_t bytes) {
    const dim3 grid(static_cast<unsigned>(DivideUp(p.out, tile)), static_cast<unsigned>(DivideUp(p.rows, tile)));
    Launch(state, kernel, grid, 256, bytes, p, aligned_x, aligned_w);
  };
  if (DivideUp(p.out, 128) * DivideUp(p.rows, 128) >= state.sms()) many(ManyRowsKernel<X, W, 8>, 128, kTiledShared<8>);
  else many(ManyRowsKernel<X, W, 4>, 64, kTiledShared<4>);
}

}  // namespace

void GeneralProduct(State& state, const Product& p, Dtype x, Dtype w) {
  WithActivation(x, [&]<typename X>(X) { WithWeight(w, [&]<typename W>(W) { Run<X, W>(state, p); }); });
}

}  // namespace bamba::cuda
