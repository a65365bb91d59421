#include <algorithm>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

// A block makes kTile outputs by kTile rows, its 2 × 4 warps kTile/2 by kTile/4 each. Stages of 64 inputs come through shared memory in two planes of 32, so
// that a plane's rows are 64 bytes and eight lanes read 16 bytes each from different banks; in the second plane neighbouring rows are swapped, which keeps the
// copies' writes in different banks, too.
constexpr int kThreads = 256, kStages = 3, kStageInputs = 64;

template <int kTile>
struct Tiles {
  static constexpr int kPlane = 2 * kTile * 64;  // bytes: kTile rows of the weight, then kTile rows of x
  static constexpr int kStage = 2 * kPlane;
  static constexpr int kResultPitch = kTile + 4;
  static constexpr int kShared = std::max(kStages * kStage, kTile * kResultPitch * 4);
};

__device__ __forceinline__ int PlaceInPlane(int plane, int row) { return (row ^ plane) * 64; }

template <int kTile>
__device__ __forceinline__ void CopyRows(char* stage, const bf16* data, int64_t stride, int64_t first_row, int64_t rows, int64_t k, int64_t in) {
#pragma unroll
  for (int i = 0; i < kTile * 8 / kThreads; i++) {
    const int v = i * kThreads + static_cast<int>(threadIdx.x), row = v / 8, part = v % 8;
    const int64_t at = k + part * 8;
    const bf16* const from = data + min(first_row + row, rows - 1) * stride;
    CopyAsync(stage + part / 4 * Tiles<kTile>::kPlane + PlaceInPlane(part / 4, row) + part % 4 * 16, at < in ? from + at : from, at < in);
  }
}

template <int kTile>
__global__ void __launch_bounds__(kThreads) TiledKernel(Product p) {
  using T = Tiles<kTile>;
  constexpr int kOut = kTile / 2 / 16, kRow = kTile / 4 / 8;
  extern __shared__ __align__(128) char shared[];
  LetNextBegin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_output = warp % 2 * (kTile / 2), warp_row = warp / 2 * (kTile / 4);
  const int64_t first_row = int64_t{blockIdx.x} * kTile, first_output = int64_t{blockIdx.y} * kTile, stages = DivideUp(p.in, kStageInputs);
  const bf16* const w = static_cast<const bf16*>(p.w);
  const bf16* const x = static_cast<const bf16*>(p.x);
  auto copy_weights = [&](int64_t s) {
    if (s < stages) CopyRows<kTile>(shared + s % kStages * T::kStage, w, p.in, first_output, p.out, s * kStageInputs, p.in);
  };
  auto copy_x = [&](int64_t s) {
    if (s < stages) CopyRows<kTile>(shared + s % kStages * T::kStage + kTile * 64, x, p.x_stride, first_row, p.rows, s * kStageInputs, p.in);
    CommitCopies();
  };
  for (int s = 0; s < kStages - 1; s++) copy_weights(s);
  WaitForPrevious();
  for (int s = 0; s < kStages - 1; s++) copy_x(s);

  float total[kOut][kRow][4] = {}, sum[kOut][kRow][4] = {};
  for (int64_t s = 0; s < stages; s++) {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    copy_weights(s + kStages - 1);
    copy_x(s + kStages - 1);
    const char* const stage = shared + s % kStages * T::kStage;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const char* const plane = stage + j * T::kPlane + t * 16;
      uint4 a[kOut][2], b[kRow];
#pragma unroll
      for (int m = 0; m < kOut; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) a[m][h] = *reinterpret_cast<const uint4*>(plane + PlaceInPlane(j, warp_output + m * 16 + h * 8 + g));
#pragma unroll
      for (int n = 0; n < kRow; n++) b[n] = *reinterpret_cast<const uint4*>(plane + kTile * 64 + PlaceInPlane(j, warp_row + n * 8 + g));
#pragma unroll
      for (int n = 0; n < kRow; n++)
#pragma unroll
        for (int m = 0; m < kOut; m++) MmaPair(sum[m][n], a[m][0], a[m][1], b[n]);
    }
    if (s % (kPiece / kStageInputs) == kPiece / kStageInputs - 1 || s + 1 == stages) {
#pragma unroll
      for (int m = 0; m < kOut; m++)
#pragma unroll
        for (int n = 0; n < kRow; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) total[m][n][i] += sum[m][n][i], sum[m][n][i] = 0;
    }
  }

  // Through shared memory, so that a row's outputs are written side by side.
  WaitForCopies<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(shared);  // [row][output]
#pragma unroll
  for (int m = 0; m < kOut; m++)
#pragma unroll
    for (int n = 0; n < kRow; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) result[(warp_row + n * 8 + 2 * t + i % 2) * T::kResultPitch + warp_output + m * 16 + i / 2 * 8 + g] = total[m][n][i];
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
    const int64_t row = first_row + e / kTile, output = first_output + e % kTile;
    if (row < p.rows && output < p.out) StoreResult(p, row, output, result[e / kTile * T::kResultPitch + e % kTile]);
  }
}

template <int kTile>
void Run(State& state, const Product& p) {
  Launch(state, TiledKernel<kTile>, dim3(static_cast<unsigned>(DivideUp(p.rows, kTile)), static_cast<unsigned>(DivideUp(p.out, kTile))), kThreads,
         Tiles<kTile>::kShared, p);
}

}  // namespace

void TiledProduct(State& state, const Product& p) {
  if (DivideUp(p.out, 128) * DivideUp(p.rows, 128) >= state.sms()) Run<128>(state, p);
  else Run<64>(state, p);
}

}  // namespace bamba::cuda
