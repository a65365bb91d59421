#include <algorithm>

#include "ops/cuda/gemm_hopper.cuh"

// Products of few rows by Hopper's instructions, at the speed of reading W: one thread copies W and another x, one or two warpgroups multiply 64 outputs each.
// A copy of W brings several boxes side by side, since a thread that asks for 8 KB at a time gets less than DRAM has to give. Blocks stay and take one tile of
// outputs after the other; what is left when there is less than a tile for each block is dealt out evenly.
namespace bamba::cuda {
namespace {

// Leaves some for the small kernels that begin beside a product. As much as there is pays only where x is a larger part of it.
template <int kRows>
constexpr int kMostShared = (kRows <= 32 ? 204 : 222) * 1024;

// kHalves: there are at most half as many tiles of 64 outputs as multiprocessors, so the two blocks of a cluster share one: each takes half of the inputs
// (FirstHalf).
template <bool kHalves, int kConsumers, int kRows>
struct FewRows {
  static_assert(!kHalves || kConsumers == 1, "the other half's sums have room for one warpgroup's");
  static constexpr int kMultiplying = kConsumers * 128, kThreads = kMultiplying + 2 * 32;  // two warps copy, and leave registers to the kernels around this one
  static constexpr int kTile = 64 * kConsumers;                                            // outputs
  static constexpr int kBoxes = kRows <= 32 ? 4 : kRows <= 64 ? 2 : 1, kInputs = kBoxes * kStageInputs;  // of a stage
  static constexpr int kXBox = kRows * kStageInputs * 2, kX = kBoxes * kXBox, kWeights = kTile * kInputs * 2, kStage = kWeights + kX;
  // Rows whose halves a block adds up and stores: the first one does all, of many rows each does its share.
  static constexpr int kShare = kHalves && kRows > 64 ? kRows / 2 : kRows;
  static constexpr int kResult = 4 * kResultBytes<kShare>;  // of a consumer, on their way out
  static constexpr int kOtherHalf = kHalves ? kTile * kShare * 4 : 0, kBesideStages = kOtherHalf + kConsumers * kResult + 1024;
  static constexpr int kStages = (kMostShared<kRows> - kBesideStages) / kStage;
  static constexpr int kShared = kStages * kStage + kBesideStages;  // stages are aligned to 1024 bytes in it
};

// A block takes `whole` tiles in turns with the others, then `last` outputs. kHalves: first_half inputs are the first block's. x: in boxes of its rows.
template <bool kHalves, int kConsumers, int kRows>
__global__ void __launch_bounds__(FewRows<kHalves, kConsumers, kRows>::kThreads, 1) BAMBA_CLUSTER(kHalves ? 2 : 1)
    FewRowsKernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap last_weights, const __grid_constant__ CUtensorMap x,
                  const Product p, int whole, int last, int first_half) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = FewRows<kHalves, kConsumers, kRows>;
  constexpr int kBehind = kRows <= 64 ? 0 : 1;  // stages whose products may still go on when those of the next begin
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages], other_half;
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int half = kHalves ? RankInCluster() : 0, block = static_cast<int>(blockIdx.x) / (kHalves ? 2 : 1),
            blocks = static_cast<int>(gridDim.x) / (kHalves ? 2 : 1);
  // This block's tiles.
  const auto outputs_of = [&](int tile) { return tile < whole ? T::kTile : last; };
  const auto first_of = [&](int tile) { return tile * blocks * T::kTile + block * outputs_of(tile); };
  const int tiles = whole + (first_of(whole) < p.out ? 1 : 0);
  // Its inputs, in stages.
  const int from = half == 0 ? 0 : first_half,
            count = static_cast<int>(DivideUp((kHalves && half == 0 ? first_half : static_cast<int>(p.in)) - from, T::kInputs));
  const auto copy_weights = [&](int slot, int tile, int s) {
    ArriveForBytes(&full[slot], outputs_of(tile) * T::kInputs * 2);
    CopyWeights(stages + slot * T::kStage, tile < whole ? &weights : &last_weights, &full[slot], from / kStageInputs + s * T::kBoxes, first_of(tile));
  };
  const int early = min(count, T::kStages);
  if (threadIdx.x == T::kMultiplying) {
    for (int s = 0; s < T::kStages; s++) InitBarrier(&full[s], 2), InitBarrier(&empty[s], kConsumers * 4);
    InitBarrier(&other_half, 1);
    PublishBarriers();
    if constexpr (kHalves) ArriveForBytes(&other_half, T::kOtherHalf);
    // The weights of the first stages needn't wait for the kernel ahead.
    for (int s = 0; s < early; s++) copy_weights(s, 0, s);
    PrefetchMap(&x);
    PrefetchMap(&last_weights);
  }
  if constexpr (kHalves)
    SyncCluster();
  else
    __syncthreads();

  if (threadIdx.x >= T::kMultiplying) {
    if (threadIdx.x == T::kMultiplying) {
      CopyStages(empty, 0, tiles, 1, count, early, copy_weights);
    } else if (threadIdx.x == T::kMultiplying + 32) {
      WaitForPrevious();
      CopyStages(empty, 0, tiles, 1, count, 0, [&](int slot, int, int s) {
        ArriveForBytes(&full[slot], static_cast<int>(p.rows) * T::kInputs * 2);
#pragma unroll
        for (int box = 0; box < T::kBoxes; box++)
          CopyBoxes(stages + slot * T::kStage + T::kWeights + box * T::kXBox, &x, &full[slot], from / kStageInputs + s * T::kBoxes + box, 0);
      });
    }
    __syncwarp();
    WaitForPrevious();
    return;
  }
  WaitForPrevious();
  const int consumer = static_cast<int>(threadIdx.x) / 128, thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  char* const results = stages + T::kStages * T::kStage;
  float4* const other = reinterpret_cast<float4*>(results) + thread;  // [kShare / 8][128]
  float* const result = reinterpret_cast<float*>(results + T::kOtherHalf + consumer * T::kResult + warp * kResultBytes<T::kShare>);
  int slot = 0, parity = 0;
  const auto release = [&](int behind) {  // the slot of so many stages ago
    if (lane == 0) Arrive(&empty[slot >= behind ? slot - behind : slot - behind + T::kStages]);
  };
  for (int tile = 0; tile < tiles; tile++) {
    const int outputs = outputs_of(tile);
    float sum[kRows / 2] = {};
    for (int s = 0; s < count; s++) {
      WaitFor(&full[slot], parity);
      const char* const stage_at = stages + slot * T::kStage;
      const uint64_t a = Describe(SharedAddress(stage_at + consumer * (64 * kStageInputs * 2))), b = Describe(SharedAddress(stage_at + T::kWeights));
      BeginProducts();
#pragma unroll
      for (int k = 0; k < T::kInputs; k += 16) {
        const int box = k / kStageInputs, bytes = k % kStageInputs * 2;  // which, and within its rows
        Multiply<kRows>(sum, a + (box * outputs * kStageInputs * 2 + bytes) / 16, b + (box * T::kXBox + bytes) / 16, s > 0 || k > 0);
      }
      CommitProducts();
      WaitForProducts<kBehind>();
      if (s >= kBehind) release(kBehind);
      if (++slot == T::kStages) slot = 0, parity ^= 1;
    }
    if constexpr (kBehind > 0) {
      WaitForProducts<0>();
      release(1);
    }
    Pin(sum);

    const auto store = [&](const float (&sums)[T::kShare / 2], int row) {
      const int output = consumer * 64 + warp * 16;  // of the tile
      if (output < outputs) StoreSums<T::kShare>(p, sums, result, row, first_of(tile) + output);
    };
    if constexpr (!kHalves) {
      store(sum, 0);
    } else if constexpr (T::kShare == kRows) {
      if (half == 1) return SendSums<kRows>(sum, other, &other_half, 0);
      WaitForCluster(&other_half, 0);
      AddSums<kRows>(sum, other);
      store(sum, 0);
    } else {
      constexpr int kCount = T::kShare / 2;
      float own[kCount], others[kCount];
#pragma unroll
      for (int i = 0; i < kCount; i++) own[i] = half == 0 ? sum[i] : sum[kCount + i], others[i] = half == 0 ? sum[kCount + i] : sum[i];
      SendSums<T::kShare>(others, other, &other_half, 1 - half);
      WaitForCluster(&other_half, 0);
      AddSums<T::kShare>(own, other);
      store(own, half * T::kShare);
    }
  }
#endif
}

template <bool kHalves, int kConsumers, int kRows>
void Run(State& state, const Product& p) {
  using T = FewRows<kHalves, kConsumers, kRows>;
  constexpr int64_t kLeast = 16;  // outputs, of a warp
  const int64_t most = kHalves ? DivideUp(state.sms(), 2) : state.sms(), whole = p.out / (most * T::kTile), rest = p.out - whole * most * T::kTile;
  const int64_t last = std::max(DivideUp(DivideUp(rest, most), kLeast), int64_t{1}) * kLeast, blocks = whole > 0 ? most : DivideUp(rest, last);
  const auto map = [&](int outputs) { return MapOfBoxes(p.w, p.out, p.in, p.in, outputs, T::kBoxes); };
  Launch(state, FewRowsKernel<kHalves, kConsumers, kRows>, static_cast<unsigned>(kHalves ? 2 * blocks : blocks), T::kThreads, T::kShared, map(T::kTile),
         map(static_cast<int>(last)), MapOfBoxes(p.x, p.rows, p.in, p.x_stride, static_cast<int>(p.rows), 1), p, static_cast<int>(whole),
         static_cast<int>(last), static_cast<int>(FirstHalf(state, p)));
}

// With more rows x is a larger part of what is read; two warpgroups share it.
template <bool kHalves>
void RunFor(State& state, const Product& p) {
  constexpr int kMore = kHalves ? 1 : 2;
  if (p.rows <= 8)
    Run<kHalves, 1, 8>(state, p);
  else if (p.rows <= 16)
    Run<kHalves, 1, 16>(state, p);
  else if (p.rows <= 32)
    Run<kHalves, kMore, 32>(state, p);
  else if (p.rows <= 64)
    Run<kHalves, kMore, 64>(state, p);
  else
    Run<kHalves, kMore, 128>(state, p);
}

}  // namespace

void FewRowsProduct(State& state, const Product& p) {
  CHECK(p.rows <= kFewRows && p.out < (int64_t{1} << 30) && p.in < (int64_t{1} << 30));
  if (p.in % kStageInputs != 0) return HopperProduct(state, p);
  FirstHalf(state, p) < p.in ? RunFor<true>(state, p) : RunFor<false>(state, p);
}

}  // namespace bamba::cuda
