#include <algorithm>

#include "ops/cuda/gemm_hopper.cuh"
#include "ops/cuda/rows.cuh"

// Products of 97 to 128 rows with many outputs, at the speed of reading W, and the same of two matrices with SwiGLU in between: x is the side of 64 of Hopper's
// instructions, two warpgroups with 64 rows each, and W is the wide one. So a multiprocessor takes all its outputs at once (of the 9B's gate and up 112 each) and
// reads x only once for them. With tiles of 128 outputs (gemm_few_rows.cu) as much of x is read as of W, which costs power, and power is what bounds these
// products in a model.
namespace bamba::cuda {
namespace {

constexpr int kLeastRows = 97, kMostRows = 128;  // it always multiplies as many as it takes at most

// kWidth: outputs at a time, kGated: half of them of gate, half of up.
template <int kWidth, bool kGated>
struct Wide {
  static constexpr int kMultiplying = kMostRows / 64 * 128, kThreads = kMultiplying + 2 * 32;  // two warps copy
  static constexpr int kColumns = kGated ? kWidth / 2 : kWidth;                                // of y
  static constexpr int kMatrix = kColumns * kStageInputs * 2, kWeights = (kGated ? 2 : 1) * kMatrix, kStage = kWeights + kMostRows * kStageInputs * 2;
  static constexpr int kStages = 222 * 1024 / kStage, kShared = kStages * kStage + 1024;  // stages are aligned to 1024 bytes in it
};

// Blocks take `outputs` ≤ kColumns at a time, in turns. w, up: in boxes of so many; x: in boxes of its rows. p.out is y's columns.
template <int kWidth, bool kGated>
__global__ void __launch_bounds__(Wide<kWidth, kGated>::kThreads, 1)
    WideKernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap up, const __grid_constant__ CUtensorMap x, const Product p, int outputs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Wide<kWidth, kGated>;
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages];
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int count = static_cast<int>(p.in) / kStageInputs, out = static_cast<int>(p.out);
  const int first = static_cast<int>(blockIdx.x) * outputs, step = static_cast<int>(gridDim.x) * outputs;
  const auto copy_weights = [&](int slot, int output, int s) {
    ArriveForBytes(&full[slot], (kGated ? 2 : 1) * outputs * kStageInputs * 2);
    CopyWeights(stages + slot * T::kStage, &w, &full[slot], s, output);
    if constexpr (kGated) CopyWeights(stages + slot * T::kStage + T::kMatrix, &up, &full[slot], s, output);
  };
  const int early = min(count, T::kStages);
  if (threadIdx.x == T::kMultiplying) {
    for (int s = 0; s < T::kStages; s++) InitBarrier(&full[s], 2), InitBarrier(&empty[s], T::kMultiplying / 32);
    PublishBarriers();
    // The weights of the first stages needn't wait for the kernel ahead.
    for (int s = 0; s < early; s++) copy_weights(s, first, s);
    PrefetchMap(&x);
  }
  __syncthreads();

  if (threadIdx.x >= T::kMultiplying) {
    if (threadIdx.x == T::kMultiplying) {
      CopyStages(empty, first, out, step, count, early, copy_weights);
    } else if (threadIdx.x == T::kMultiplying + 32) {
      WaitForPrevious();
      CopyStages(empty, first, out, step, count, 0, [&](int slot, int, int s) {
        ArriveForBytes(&full[slot], static_cast<int>(p.rows) * kStageInputs * 2);
        CopyBoxes(stages + slot * T::kStage + T::kWeights, &x, &full[slot], s, 0);
      });
    }
    __syncwarp();
    WaitForPrevious();
    return;
  }
  WaitForPrevious();
  const int half = static_cast<int>(threadIdx.x) / 128, warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int slot = 0, parity = 0;
  const auto release = [&] {  // the slot before this one
    if (lane == 0) Arrive(&empty[slot > 0 ? slot - 1 : T::kStages - 1]);
  };
  // Four lanes have two numbers of each eight columns in four groups of eight: lane q gets all of group q.
  const auto gather_eight = [q = lane % 4](const uint32_t(&pairs)[4]) -> uint4 {
    const auto at = [](const uint32_t(&of)[4], int i) { return i == 0 ? of[0] : i == 1 ? of[1] : i == 2 ? of[2] : of[3]; };
    uint32_t from[4];  // what lane q ^ i has of this lane's group
#pragma unroll
    for (int i = 0; i < 4; i++) from[i] = __shfl_xor_sync(~0u, at(pairs, q ^ i), i);
    return {at(from, q), at(from, q ^ 1), at(from, q ^ 2), at(from, q ^ 3)};
  };
  for (int output = first; output < out; output += step) {
    float sum[kWidth / 2] = {};  // see Multiply
    for (int s = 0; s < count; s++) {
      WaitFor(&full[slot], parity);
      const char* const stage_at = stages + slot * T::kStage;
      const uint64_t a = Describe(SharedAddress(stage_at + T::kWeights + half * (64 * kStageInputs * 2))), b = Describe(SharedAddress(stage_at));
      BeginProducts();
#pragma unroll
      for (int k = 0; k < kStageInputs / 16; k++) Multiply<kWidth>(sum, a + 2 * k, b + 2 * k, s > 0 || k > 0);
      CommitProducts();
      // The stage before this one has been read then.
      WaitForProducts<1>();
      if (s > 0) release();
      if (++slot == T::kStages) slot = 0, parity ^= 1;
    }
    WaitForProducts<0>();
    release();
    Pin(sum);

    // 32 columns of a row by four lanes, 16 bytes each.
    const int end = min(outputs, out - output), column_of_lane = lane % 4 * 8;
#pragma unroll
    for (int column = 0; column < T::kColumns; column += 32)
#pragma unroll
      for (int low = 0; low < 4; low += 2) {  // see Multiply: of a row's pairs and of those 8 rows further on
        uint32_t pairs[4] = {};
#pragma unroll
        for (int i = 0; i < 4 && column + 8 * i < T::kColumns; i++) {
          const float* const at = sum + (column / 8 + i) * 4 + low;
          if constexpr (kGated) {
            const float* const ups = at + T::kColumns / 2;
            pairs[i] = PackPair(Silu<bf16>(at[0]) * ups[0], Silu<bf16>(at[1]) * ups[1]);
          } else {
            pairs[i] = PackPair(at[0], at[1]);
          }
        }
        const uint4 eight = gather_eight(pairs);
        const int row = half * 64 + warp * 16 + lane / 4 + low * 4;
        if (row < p.rows && column + column_of_lane < end)
          *reinterpret_cast<uint4*>(static_cast<bf16*>(p.y) + row * p.y_stride + output + column + column_of_lane) = eight;
      }
  }
#endif
}

template <int kWidth, bool kGated>
void Run(State& state, const Product& p, const void* up, int outputs) {
  using T = Wide<kWidth, kGated>;
  const auto map = [&](const void* weights) { return MapOfBoxes(weights, p.out, p.in, p.in, outputs, 1); };
  const CUtensorMap w = map(p.w);
  Launch(state, WideKernel<kWidth, kGated>, static_cast<unsigned>(std::min<int64_t>(DivideUp(p.out, outputs), state.sms())), T::kThreads, T::kShared, w,
         kGated ? map(up) : w, MapOfBoxes(p.x, p.rows, p.in, p.x_stride, static_cast<int>(p.rows), 1), p, outputs);
}

// The least rounds of blocks, whose shares are as equal as their being a multiple of 8 lets them.
template <bool kGated>
void RunFor(State& state, const Product& p, const void* up) {
  constexpr int kMost = kGated ? 128 : 256;
  const int64_t shares = DivideUp(p.out, state.sms() * kMost) * state.sms();
  const auto outputs = static_cast<int>(DivideUp(DivideUp(p.out, shares), 8) * 8);
  const int width = outputs * (kGated ? 2 : 1);
  if (width <= 128)
    Run<128, kGated>(state, p, up, outputs);
  else if (width <= 224)
    Run<224, kGated>(state, p, up, outputs);
  else
    Run<256, kGated>(state, p, up, outputs);
}

}  // namespace

bool WideProduct(State& state, const Product& p, const void* up) {
  constexpr int64_t kLeastWidth = 96;  // with fewer outputs for a multiprocessor x is most of what is read
  if (!HasHopperProducts(state) || p.rows < kLeastRows || p.rows > kMostRows || p.out * (up ? 2 : 1) <= state.sms() * kLeastWidth) return false;
  const auto addresses = reinterpret_cast<uintptr_t>(up) | reinterpret_cast<uintptr_t>(p.y);
  if (p.bias || p.wide || !VectorsFit(p) || p.in % kStageInputs != 0 || p.out % 8 != 0 || p.y_stride % 8 != 0 || addresses % 16 != 0) return false;
  if (p.in >= (int64_t{1} << 30) || p.out >= (int64_t{1} << 30)) return false;
  up ? RunFor<true>(state, p, up) : RunFor<false>(state, p, nullptr);
  return true;
}

}  // namespace bamba::cuda
