#include <algorithm>
#include <limits>

#include "ops/cuda/gemm_hopper.cuh"

// Products of many rows by Hopper's own instructions: one thread copies W and another x, two warpgroups multiply.
namespace bamba::cuda {
namespace {

constexpr int kConsumers = 2, kOutputs = 64 * kConsumers;  // warpgroups that multiply; outputs of a tile

// A tile of kOutputs by kRows rows. kHalves: there are no more tiles than half the multiprocessors, so the two blocks of a cluster share one: each takes half
// of the inputs (FirstHalf).
template <int kRows, bool kHalves>
struct Tiles {
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kWeights = kOutputs * kStageInputs * 2, kX = kRows * kStageInputs * 2, kStage = kWeights + kX;
  static constexpr int kOtherHalf = kHalves ? kOutputs * kRows * 4 : 0;
  static constexpr int kStages = std::min(8, (200 * 1024 - kOtherHalf) / kStage);
  static constexpr int kShared = kStages * kStage + kOtherHalf + kConsumers * 4 * kResultBytes<kRows> + 1024;  // stages are aligned to 1024 bytes within it
};

using Tiling = Grid<12>;

// last_x: x in boxes of as many rows as the last tile has. half: stages of the first half (FirstHalf). first_halves, of a block that does both:
// [block][kConsumers][kRows / 8][128] of four sums.
template <int kRows, bool kHalves>
__global__ void __launch_bounds__(Tiles<kRows, kHalves>::kThreads, 1) BAMBA_CLUSTER(kHalves ? 2 : 1)
    HopperKernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap last_x,
                 const Product p, const Tiling grid, int half, float4* first_halves) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Tiles<kRows, kHalves>;
  constexpr bool kMoveRegisters = kRows > 128;  // from the copying warps to the others
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages], other_half;
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int all = static_cast<int>(DivideUp(p.in, kStageInputs)), group = static_cast<int>(threadIdx.x) / 128;
  const int first_tile = static_cast<int>(blockIdx.x) / (kHalves ? 2 : 1), step = static_cast<int>(gridDim.x) / (kHalves ? 2 : 1);
  // This block's inputs, in stages.
  const int rank = kHalves ? RankInCluster() : 0, from = rank == 0 ? 0 : half, count = (kHalves && rank == 0 ? half : all) - from;
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; s++) InitBarrier(&full[s], 2), InitBarrier(&empty[s], kConsumers * 4);
    InitBarrier(&other_half, 1);
    PublishBarriers();
    if constexpr (kHalves) ArriveForBytes(&other_half, T::kOtherHalf);
  }
  if constexpr (kHalves)
    SyncCluster();
  else
    __syncthreads();

  if (group == 0) {
    if constexpr (kMoveRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0 || threadIdx.x == 32) {
      const bool of_x = threadIdx.x == 32;
      if (of_x) WaitForPrevious();  // the weights needn't
      int stage = 0;
      for (int tile = first_tile; tile < grid.count(); tile += step) {
        int row, output;
        grid.Place(tile, &row, &output);
        const bool last = row + 1 == grid.row_tiles;
        const CUtensorMap* const map = !of_x ? &weights : last ? &last_x : &x;
        const int first = of_x ? row * kRows : output * kOutputs, place = of_x ? T::kWeights : 0;
        const int bytes = of_x ? (last ? static_cast<int>(p.rows) - first : kRows) * kStageInputs * 2 : T::kWeights;
        for (int s = 0; s < count; s++, stage++) {
          const int slot = stage % T::kStages;
          if (stage >= T::kStages) WaitFor(&empty[slot], (stage / T::kStages - 1) & 1);
          ArriveForBytes(&full[slot], bytes);
          CopyBox(SharedAddress(stages + slot * T::kStage + place), map, SharedAddress(&full[slot]), (from + s) * kStageInputs, first);
        }
      }
    }
    __syncwarp();
    WaitForPrevious();
  } else {
    if constexpr (kMoveRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    WaitForPrevious();
    const int consumer = group - 1, warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const auto release = [&](int stage) {
      if (lane == 0) Arrive(&empty[stage % T::kStages]);
    };
    char* const results = stages + T::kStages * T::kStage;
    float4* const other = reinterpret_cast<float4*>(results) + consumer * (kRows / 8 * 128) + threadIdx.x % 128;            // [kRows / 8][128]
    float* const result = reinterpret_cast<float*>(results + T::kOtherHalf + (consumer * 4 + warp) * kResultBytes<kRows>);  // [row][output]
    int stage = 0;
    for (int tile = first_tile; tile < grid.count(); tile += step) {
      float sum[kRows / 2] = {};
      float4* const saved = first_halves + (static_cast<int64_t>(blockIdx.x) * kConsumers + consumer) * (kRows / 8 * 128) + threadIdx.x % 128;
      const auto multiply = [&](int first, int end) {  // stages
        for (int s = first; s < end; s++, stage++) {
          const int slot = stage % T::kStages;
          WaitFor(&full[slot], stage / T::kStages & 1);
          const char* const stage_at = stages + slot * T::kStage;
          const uint64_t a = Describe(SharedAddress(stage_at + consumer * (64 * kStageInputs * 2))), b = Describe(SharedAddress(stage_at + T::kWeights));
          BeginProducts();
#pragma unroll
          for (int k = 0; k < kStageInputs / 16; k++) Multiply<kRows>(sum, a + 2 * k, b + 2 * k, s > first || k > 0);
          CommitProducts();
          // The stage before this one has been read then.
          WaitForProducts<1>();
          if (s > first) release(stage - 1);
        }
        WaitForProducts<0>();
        release(stage - 1);
      };
      if constexpr (kHalves) {
        multiply(0, count);
        if (rank == 1) return SendSums<kRows>(sum, other, &other_half, 0);
        WaitForCluster(&other_half, 0);
        AddSums<kRows>(sum, other);
      } else {
        multiply(0, min(half, count));
        if (half < count) {
          SaveSums<kRows>(sum, saved);
          multiply(half, count);
          AddSums<kRows>(sum, saved);
        }
      }

      int row, output;
      grid.Place(tile, &row, &output);
      StoreSums<kRows>(p, sum, result, row * kRows, output * kOutputs + consumer * 64 + warp * 16);
    }
  }
#endif
}

template <int kRows, bool kHalves>
void Run(State& state, const Product& p) {
  using T = Tiles<kRows, kHalves>;
  const Tiling grid{static_cast<int>(DivideUp(p.rows, kRows)), static_cast<int>(DivideUp(p.out, kOutputs))};
  const int last_rows = static_cast<int>(p.rows - (grid.row_tiles - 1) * kRows);
  const CUtensorMap weights = MapOf(p.w, p.out, p.in, p.in, kOutputs), x = MapOf(p.x, p.rows, p.in, p.x_stride, kRows),
                    last_x = MapOf(p.x, p.rows, p.in, p.x_stride, last_rows);
  Launch(state, HopperKernel<kRows, kHalves>, static_cast<unsigned>(kHalves ? 2 * grid.count() : std::min(grid.count(), state.sms())), T::kThreads, T::kShared,
         weights, x, last_x, p, grid, static_cast<int>(DivideUp(FirstHalf(state, p), kStageInputs)), reinterpret_cast<float4*>(state.scratch()));
}

}  // namespace

CUtensorMap MapOf(const void* data, int64_t rows, int64_t in, int64_t stride, int box) {
  return TensorMap(data, {{in, 1, kStageInputs}, {rows, stride, box}}, 256);
}

CUtensorMap MapOfBoxes(const void* data, int64_t rows, int64_t in, int64_t stride, int box, int boxes) {
  // Not 256: of long rows that are read in this way DRAM gives 7 % less with it.
  return TensorMap(data, {{kStageInputs, 1, kStageInputs}, {rows, stride, box}, {in / kStageInputs, kStageInputs, boxes}}, 128);
}

bool HasHopperProducts(const State& state) { return HasTensorMaps(state); }

void HopperProduct(State& state, const Product& p) {
  CHECK(p.rows < (int64_t{1} << 30) && p.out < (int64_t{1} << 30) && p.in < (int64_t{1} << 30));
  // The least rounds of blocks, each as long as what it reads or multiplies. Results don't depend on it.
  const bool halves = FirstHalf(state, p) < p.in;
  const auto tiles = [&](int64_t rows) { return DivideUp(p.out, kOutputs) * DivideUp(p.rows, rows); };
  const auto cost = [&](int64_t rows) { return 2 * DivideUp(tiles(rows), state.sms()) * (rows + 24); };
  const auto cost_of_halves = [&](int64_t rows) { return halves && 2 * tiles(rows) <= state.sms() ? rows + 24 : std::numeric_limits<int64_t>::max(); };
  const int64_t cost_of_large = LargeFits(p) ? 2 * LargeRounds(state, p) * (256 + 16) : std::numeric_limits<int64_t>::max();
  const int64_t least = std::min({cost(64), cost(128), cost(192), cost_of_halves(64), cost_of_halves(128), cost_of_large});
  if (least == cost_of_large)
    LargeProduct(state, p);
  else if (least == cost_of_halves(64))
    Run<64, true>(state, p);
  else if (least == cost_of_halves(128))
    Run<128, true>(state, p);
  else if (least == cost(192))
    Run<192, false>(state, p);
  else if (least == cost(128))
    Run<128, false>(state, p);
  else
    Run<64, false>(state, p);
}

}  // namespace bamba::cuda
