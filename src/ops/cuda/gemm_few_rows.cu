#include <algorithm>

#include "ops/cuda/gemm_hopper.cuh"

// Products of few rows by Hopper's instructions, at the speed of reading W: one thread copies, one or two warpgroups multiply 64 outputs each. Blocks stay and
// take one tile of outputs after the other; what is left when there is less than a tile for each block is dealt out in boxes.
namespace bamba::cuda {
namespace {

constexpr int kMostShared = 204 * 1024;  // leaves some for the small kernels that begin beside a product

// kHalves: there are fewer tiles of 64 outputs than multiprocessors, so the two blocks of a cluster share one: each takes half of the inputs (FirstHalf).
template <bool kHalves, int kConsumers, int kRows>
struct FewRows {
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kBox = kConsumers == 1 ? 64 : 32, kTileBoxes = 64 * kConsumers / kBox;  // a box: W's outputs that are copied at a time
  static constexpr int kX = kRows * kStageInputs * 2, kWeights = 64 * kConsumers * kStageInputs * 2, kStage = kWeights + kX;
  static constexpr int kResult = 4 * kResultBytes<kRows>;  // of a consumer, on their way out
  static constexpr int kOtherHalf = kHalves ? kRows / 2 * 128 * 4 : 0, kBesideStages = kOtherHalf + kConsumers * kResult + 1024;
  static constexpr int kStages = (kMostShared - kBesideStages) / kStage, kShared = kStages * kStage + kBesideStages;  // stages are aligned to 1024 bytes in it
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ int RankInCluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Where the cluster's first block has what lies at `p` in this one.
__device__ __forceinline__ uint32_t InFirstBlock(const void* p) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(SharedAddress(p)));
  return there;
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define BAMBA_CLUSTER(n)  // there are none, and the kernel is empty
#else
#define BAMBA_CLUSTER(n) __cluster_dims__(n)
#endif

// kHalves: first_half inputs are the first block's.
template <bool kHalves, int kConsumers, int kRows>
__global__ void __launch_bounds__(FewRows<kHalves, kConsumers, kRows>::kThreads, 1) BAMBA_CLUSTER(kHalves ? 2 : 1)
    FewRowsKernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const Product p, int first_half) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = FewRows<kHalves, kConsumers, kRows>;
  constexpr int kPieceStages = static_cast<int>(kPiece) / kStageInputs;
  constexpr int kBoxBytes = T::kBox * kStageInputs * 2;
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages], other_half;
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int half = kHalves ? RankInCluster() : 0, block = static_cast<int>(blockIdx.x) / (kHalves ? 2 : 1),
            blocks = static_cast<int>(gridDim.x) / (kHalves ? 2 : 1);
  // This block's tiles: `whole` of them in turns with the other blocks, then `last` boxes.
  const int boxes = static_cast<int>(DivideUp(p.out, T::kBox)), whole = boxes / (blocks * T::kTileBoxes), rest = boxes - whole * blocks * T::kTileBoxes;
  const int last = static_cast<int>(DivideUp(rest, blocks));
  const auto first_box = [&](int tile) { return tile < whole ? (tile * blocks + block) * T::kTileBoxes : boxes - rest + block * last; };
  const auto boxes_of = [&](int tile) { return tile < whole ? T::kTileBoxes : min(last, rest - block * last); };
  const int tiles = whole + (block * last < rest ? 1 : 0);
  // Its inputs, in stages.
  const int from = half == 0 ? 0 : first_half,
            count = static_cast<int>(DivideUp((kHalves && half == 0 ? first_half : static_cast<int>(p.in)) - from, kStageInputs));
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; s++) BarrierInit(&full[s], 1), BarrierInit(&empty[s], kConsumers * 4);
    BarrierInit(&other_half, 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  if constexpr (kHalves)
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  else
    __syncthreads();

  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) {
      const auto copy_weights = [&](int slot, int tile, int s) {
        const int first = first_box(tile), here = boxes_of(tile);
        BarrierExpect(&full[slot], here * kBoxBytes + T::kX);
        for (int i = 0; i < here; i++)
          CopyWeights(stages + slot * T::kStage + i * kBoxBytes, &weights, &full[slot], from + s * kStageInputs, (first + i) * T::kBox);
      };
      const auto copy_x = [&](int slot, int s) { CopyBox(stages + slot * T::kStage + T::kWeights, &x, &full[slot], from + s * kStageInputs, 0); };
      int slot = 0, parity = 1;
      for (int tile = 0; tile < tiles; tile++) {
        int s = 0;
        if (tile == 0) {
          // The weights of the first stages needn't wait for the kernel ahead.
          const int early = min(count, T::kStages);
          for (; s < early; s++) copy_weights(s, tile, s);
          WaitForPrevious();
          for (s = 0; s < early; s++) copy_x(s, s);
          if ((slot = early) == T::kStages) slot = 0, parity = 0;
        }
        for (; s < count; s++) {
          BarrierWait(&empty[slot], parity);  // at once as long as the slot is new
          copy_weights(slot, tile, s), copy_x(slot, s);
          if (++slot == T::kStages) slot = 0, parity ^= 1;
        }
      }
    }
    __syncwarp();
    WaitForPrevious();
    return;
  }
  WaitForPrevious();
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1, thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const auto release = [&](int slot) {
    if (lane == 0) BarrierArrive(&empty[slot]);
  };
  char* const results = stages + T::kStages * T::kStage;
  float4* const other = reinterpret_cast<float4*>(results) + thread;  // [kRows / 8][128]
  float* const result = reinterpret_cast<float*>(results + T::kOtherHalf + consumer * T::kResult + warp * kResultBytes<kRows>);
  int slot = 0, parity = 0;
  for (int tile = 0; tile < tiles; tile++) {
    float total[kRows / 2] = {}, sum[kRows / 2] = {};
    for (int piece = 0; piece < count; piece += kPieceStages) {
      const int past = min(piece + kPieceStages, count);
      for (int s = piece; s < past; s++) {
        BarrierWait(&full[slot], parity);
        const uint64_t a = Describe(stages + slot * T::kStage + consumer * (64 * kStageInputs * 2)), b = Describe(stages + slot * T::kStage + T::kWeights);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < kStageInputs / 16; k++) Multiply<kRows>(sum, a + 2 * k, b + 2 * k, s > piece || k > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // The stage before this one has been read then.
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (s > piece) release(slot == 0 ? T::kStages - 1 : slot - 1);
        if (++slot == T::kStages) slot = 0, parity ^= 1;
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      release(slot == 0 ? T::kStages - 1 : slot - 1);
#pragma unroll
      for (int i = 0; i < kRows / 2; i++) total[i] += sum[i];
    }

    if constexpr (kHalves) {
      if (half == 1) {
        const uint32_t to = InFirstBlock(other), barrier = InFirstBlock(&other_half);
#pragma unroll
        for (int i = 0; i < kRows / 2; i += 4)
          asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + i / 4 * 128 * 16), "f"(total[i]), "f"(total[i + 1]), "f"(total[i + 2]),
                       "f"(total[i + 3])
                       : "memory");
        __syncwarp();
        if (lane == 0) {
          asm volatile("fence.acq_rel.cluster;" ::: "memory");
          asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
        }
        return;
      }
      BarrierWaitCluster(&other_half, 0);
#pragma unroll
      for (int i = 0; i < kRows / 2; i += 4) {
        const float4 v = other[i / 4 * 128];
        total[i] += v.x, total[i + 1] += v.y, total[i + 2] += v.z, total[i + 3] += v.w;
      }
    }
    const int output = first_box(tile) * T::kBox + consumer * 64 + warp * 16;
    if (output < (first_box(tile) + boxes_of(tile)) * T::kBox) StoreSums<kRows>(p, total, result, 0, output);
  }
#endif
}

template <bool kHalves, int kConsumers, int kRows>
void Run(State& state, const Product& p) {
  using T = FewRows<kHalves, kConsumers, kRows>;
  const CUtensorMap weights = MapOf(p.w, p.out, p.in, p.in, T::kBox), x = MapOf(p.x, p.rows, p.in, p.x_stride, kRows);
  const int64_t boxes = DivideUp(p.out, T::kBox), blocks = kHalves ? 2 * DivideUp(boxes, T::kTileBoxes) : std::min<int64_t>(boxes, state.sms());
  Launch(state, FewRowsKernel<kHalves, kConsumers, kRows>, static_cast<unsigned>(blocks), T::kThreads, T::kShared, weights, x, p,
         static_cast<int>(FirstHalf(state, p)));
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
  else
    Run<kHalves, kMore, 64>(state, p);
}

}  // namespace

void FewRowsProduct(State& state, const Product& p) {
  CHECK(p.rows <= kFewRows && p.out < (int64_t{1} << 30) && p.in < (int64_t{1} << 30));
  FirstHalf(state, p) < p.in ? RunFor<true>(state, p) : RunFor<false>(state, p);
}

}  // namespace bamba::cuda
