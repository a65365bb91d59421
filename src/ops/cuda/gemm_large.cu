#include <algorithm>

#include "ops/cuda/gemm_hopper.cuh"
#include "ops/cuda/rows.cuh"

// Products of hundreds of rows and more, and the same of two matrices with SwiGLU in between. What bounds them in a model is power: at 700 W an H200 runs them at
// three quarters of its clock. So what counts is how far each number is moved. A block's tile is as large as its registers allow, 128 rows by 256 outputs, and the
// widest instruction takes it, x the side of 64 as W is the one that both warpgroups read; two blocks with the same outputs share W, each copies half of it to
// both; and results leave by the copy engine, with SwiGLU before they do.
namespace bamba::cuda {
namespace {

constexpr int kRows = 128, kWidth = 256, kGroups = kRows / 64;  // of a tile; warpgroups that multiply

// kGated: half of the tile's outputs are of gate, half of up.
template <bool kGated>
struct Large {
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kColumns = kGated ? kWidth / 2 : kWidth;  // of y
  static constexpr int kX = kRows * kStageInputs * 2, kHalf = kWidth / 2 * kStageInputs * 2, kStage = kX + 2 * kHalf, kStages = 4;
  static constexpr int kBoxColumns = 64, kBoxRows = 16, kBox = kBoxRows * kBoxColumns * 2;  // of results on their way out, two for each warp
  static constexpr int kShared = kStages * kStage + kGroups * 4 * 2 * kBox + 1024;          // stages and boxes are aligned to 1024 bytes in it
};

using Pairs = Grid<8>;  // of tiles, one below the other

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Four matrices of eight rows by eight columns, each lane with two numbers side by side of every one, to shared memory; lane 8 i + r says where row r of matrix i goes.
__device__ __forceinline__ void StoreMatrices(uint32_t to, const uint32_t (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3]) : "memory");
}
#endif

// w, up (or w again): in boxes of half a tile's outputs; x: in boxes of kRows, last_x: of as many as the last tile has; y: in boxes of results. p.out is y's
// columns. half: stages of the first half (FirstHalf). first_halves, where there is another: [block][kGroups][kWidth / 8][128] of four sums.
template <bool kGated>
__global__ void __launch_bounds__(Large<kGated>::kThreads, 1) BAMBA_CLUSTER(2)
    LargeKernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap up, const __grid_constant__ CUtensorMap x,
                const __grid_constant__ CUtensorMap last_x, const __grid_constant__ CUtensorMap y, const Product p, const Pairs pairs, int half,
                float4* first_halves) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Large<kGated>;
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages];
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int count = static_cast<int>(DivideUp(p.in, kStageInputs)), group = static_cast<int>(threadIdx.x) / 128;
  const int rank = RankInCluster(), first_pair = static_cast<int>(blockIdx.x) / 2, step = static_cast<int>(gridDim.x) / 2;
  const auto place = [&](int pair, int* row, int* output) {
    pairs.Place(pair, row, output);
    *row = (2 * *row + rank) * kRows, *output *= T::kColumns;
  };
  if (threadIdx.x == 0) {
    // A slot is empty when the warps of both blocks have read it.
    for (int s = 0; s < T::kStages; s++) InitBarrier(&full[s], 2), InitBarrier(&empty[s], 2 * kGroups * 4);
    PublishBarriers();
  }
  SyncCluster();

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0 || threadIdx.x == 32) {
      const bool of_x = threadIdx.x == 32;
      if (of_x) WaitForPrevious();  // the weights needn't
      int slot = 0, parity = 1;
      for (int pair = first_pair; pair < pairs.count(); pair += step) {
        int row, output;
        place(pair, &row, &output);
        const int rows = max(0, min(kRows, static_cast<int>(p.rows) - row));  // none of the second block where the last pair is half one
        for (int s = 0; s < count; s++) {
          WaitFor(&empty[slot], parity);  // at once as long as the slot is new
          const uint32_t to = SharedAddress(stages + slot * T::kStage), barrier = SharedAddress(&full[slot]);
          if (of_x) {
            ArriveForBytes(barrier, rows * kStageInputs * 2);
            if (rows > 0) CopyBox(to, rows < kRows ? &last_x : &x, barrier, s * kStageInputs, row);
          } else {
            ArriveForBytes(barrier, 2 * T::kHalf);
            CopyWeightsToBoth(to + T::kX + rank * T::kHalf, rank == 0 ? &w : &up, barrier, s * kStageInputs, output + (kGated ? 0 : rank * (kWidth / 2)));
          }
          if (++slot == T::kStages) slot = 0, parity ^= 1;
        }
      }
    }
    __syncwarp();
    WaitForPrevious();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    WaitForPrevious();
    const int consumer = group - 1, warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t boxes = SharedAddress(stages + T::kStages * T::kStage + (consumer * 4 + warp) * 2 * T::kBox);
    float4* const saved = first_halves + (static_cast<int64_t>(blockIdx.x) * kGroups + consumer) * (kWidth / 8 * 128) + threadIdx.x % 128;
    int slot = 0, parity = 0;
    const auto release = [&] {  // the slot before this one
      if (lane < 2) ArriveInCluster(&empty[slot > 0 ? slot - 1 : T::kStages - 1], lane);
    };
    for (int pair = first_pair; pair < pairs.count(); pair += step) {
      float sum[kWidth / 2] = {};  // see Multiply
      const auto multiply = [&](int first, int end) {  // stages
        for (int s = first; s < end; s++) {
          WaitFor(&full[slot], parity);
          const uint32_t at = SharedAddress(stages + slot * T::kStage);
          const uint64_t a = Describe(at + consumer * (64 * kStageInputs * 2)), b = Describe(at + T::kX);
          BeginProducts();
#pragma unroll
          for (int k = 0; k < kStageInputs / 16; k++) Multiply<kWidth>(sum, a + 2 * k, b + 2 * k, s > first || k > 0);
          CommitProducts();
          // The stage before this one has been read then.
          WaitForProducts<1>();
          if (s > first) release();
          if (++slot == T::kStages) slot = 0, parity ^= 1;
        }
        WaitForProducts<0>();
        release();
        Pin(sum);
      };
      multiply(0, min(half, count));
      if (half < count) {
        SaveSums<kWidth>(sum, saved);
        multiply(half, count);
        AddSums<kWidth>(sum, saved);
      }

      int row, output;
      place(pair, &row, &output);
      // Box by box, swizzled as maps are, two in turns. Of 16 rows by 16 columns a lane says where a row of eight goes.
      const int lane_row = lane % T::kBoxRows, lane_unit = lane / T::kBoxRows;
#pragma unroll
      for (int box = 0; box < T::kColumns / T::kBoxColumns; box++) {
        const uint32_t at = boxes + box % 2 * T::kBox;
        if (lane == 0) WaitForStoresRead<1>();  // the other box may still be on its way
        __syncwarp();
#pragma unroll
        for (int unit = 0; unit < T::kBoxColumns / 8; unit += 2) {
          uint32_t eights[4];  // rows 0 … 7 and 8 … 15 of a unit, then of the next
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float* const v = sum + (box * T::kBoxColumns / 8 + unit + i / 2) * 4 + i % 2 * 2;
            if constexpr (kGated) {
              const float* const ups = v + kWidth / 4;
              eights[i] = PackPair(Silu<bf16>(v[0]) * ups[0], Silu<bf16>(v[1]) * ups[1]);
            } else {
              eights[i] = PackPair(v[0], v[1]);
            }
          }
          StoreMatrices(at + lane_row * (T::kBoxColumns * 2) + (((unit + lane_unit) ^ (lane_row % 8)) * 16), eights);
        }
        FenceForProducts();  // and for copies
        __syncwarp();
        if (lane == 0) StoreBox(&y, at, output + box * T::kBoxColumns, row + consumer * 64 + warp * T::kBoxRows);
      }
    }
    if (lane == 0) WaitForStores();
  }
  SyncCluster();  // before that the other block may write to this one
#endif
}

template <bool kGated>
void Run(State& state, const Product& p, const void* up) {
  using T = Large<kGated>;
  const Pairs pairs{static_cast<int>(DivideUp(p.rows, 2 * kRows)), static_cast<int>(DivideUp(p.out, T::kColumns))};
  const int last_rows = static_cast<int>((p.rows - 1) % kRows) + 1;
  const auto weights = [&](const void* data) { return MapOf(data, p.out, p.in, p.in, kWidth / 2); };
  const auto rows_of_x = [&](int box) { return MapOf(p.x, p.rows, p.in, p.x_stride, box); };
  const CUtensorMap w = weights(p.w), y = TensorMap(p.y, {{p.out, 1, T::kBoxColumns}, {p.rows, p.y_stride, T::kBoxRows}}, 256);
  Launch(state, LargeKernel<kGated>, static_cast<unsigned>(2 * std::min(pairs.count(), state.sms() / 2)), T::kThreads, T::kShared, w, kGated ? weights(up) : w,
         rows_of_x(kRows), rows_of_x(last_rows), y, p, pairs, static_cast<int>(DivideUp(FirstHalf(state, p), kStageInputs)),
         reinterpret_cast<float4*>(state.scratch()));
}

int64_t RoundsOf(const State& state, const Product& p, int64_t columns) {
  return DivideUp(DivideUp(p.rows, 2 * kRows) * DivideUp(p.out, columns), state.sms() / 2);
}

}  // namespace

bool LargeFits(const Product& p) { return !p.bias && !p.wide && reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && p.y_stride % 8 == 0; }

int64_t LargeRounds(const State& state, const Product& p) { return RoundsOf(state, p, kWidth); }

void LargeProduct(State& state, const Product& p) { Run<false>(state, p, nullptr); }

bool LargeGatedProduct(State& state, const Product& p, const void* up) {
  if (!HasHopperProducts(state) || p.rows <= kFewRows || !VectorsFit(p) || reinterpret_cast<uintptr_t>(up) % 16 != 0 || !LargeFits(p)) return false;
  // The last round of blocks and parts of tiles may be idle, where cuBLASLt has tiles of many sizes.
  if (RoundsOf(state, p, kWidth / 2) * (state.sms() / 2) * (2 * kRows) * (kWidth / 2) > 1.1 * static_cast<double>(p.rows * p.out)) return false;
  Run<true>(state, p, up);
  return true;
}

}  // namespace bamba::cuda
