#include <algorithm>

#include "ops/cuda/gemm_hopper.cuh"

// Products of few rows where W has few outputs: there are fewer tiles of 64 outputs than multiprocessors, so two blocks share one. Each takes half of the
// inputs; the second one puts its sums into the shared memory of the first (they are a cluster), which adds them to its own.
namespace bamba::cuda {
namespace {

constexpr int kOutputs = 64, kRing = 192 * 1024;

template <int kRows>
struct Halves {
  static constexpr int kThreads = 256;
  static constexpr int kWeights = kOutputs * kStageInputs * 2, kX = kRows * kStageInputs * 2, kStage = kWeights + kX;
  static constexpr int kStages = kRing / kStage, kSums = kRows / 2 * 128 * 4;
  static constexpr int kShared = kStages * kStage + kSums + 4 * kResultBytes<kRows> + 1024;  // stages are aligned to 1024 bytes within it
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ unsigned RankInCluster() {
  unsigned rank;
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
#define BAMBA_CLUSTER_OF_TWO  // there are none, and the kernel is empty
#else
#define BAMBA_CLUSTER_OF_TWO __cluster_dims__(2)
#endif

// first: inputs of the first half.
template <int kRows>
__global__ void __launch_bounds__(Halves<kRows>::kThreads, 1) BAMBA_CLUSTER_OF_TWO
    HalvesKernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const Product p, int first) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Halves<kRows>;
  constexpr int kPieceStages = static_cast<int>(kPiece) / kStageInputs;
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages], others_sums;
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const unsigned half = RankInCluster();
  const int output = static_cast<int>(blockIdx.x / 2) * kOutputs, from = half == 0 ? 0 : first;
  const int count = static_cast<int>(DivideUp((half == 0 ? first : static_cast<int>(p.in)) - from, kStageInputs));
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; s++) BarrierInit(&full[s], 1), BarrierInit(&empty[s], 4);
    BarrierInit(&others_sums, 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");

  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) {
      const auto copy_weights = [&](int s) {
        BarrierExpect(&full[s % T::kStages], T::kStage);
        CopyWeights(stages + s % T::kStages * T::kStage, &weights, &full[s % T::kStages], from + s * kStageInputs, output);
      };
      const auto copy_x = [&](int s) {
        CopyBox(stages + s % T::kStages * T::kStage + T::kWeights, &x, &full[s % T::kStages], from + s * kStageInputs, 0);
      };
      // Weights needn't wait for the kernel ahead.
      const int early = min(count, T::kStages);
      for (int s = 0; s < early; s++) copy_weights(s);
      WaitForPrevious();
      for (int s = 0; s < early; s++) copy_x(s);
      for (int s = early; s < count; s++) {
        BarrierWait(&empty[s % T::kStages], (s / T::kStages - 1) & 1);
        copy_weights(s), copy_x(s);
      }
    }
    __syncwarp();
    WaitForPrevious();
    return;
  }
  WaitForPrevious();
  const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const auto release = [&](int s) {
    if (lane == 0) BarrierArrive(&empty[s % T::kStages]);
  };
  float total[kRows / 2] = {}, sum[kRows / 2] = {};
  for (int piece = 0; piece < count; piece += kPieceStages) {
    const int end = min(piece + kPieceStages, count);
    for (int s = piece; s < end; s++) {
      BarrierWait(&full[s % T::kStages], s / T::kStages & 1);
      const uint64_t a = Describe(stages + s % T::kStages * T::kStage), b = Describe(stages + s % T::kStages * T::kStage + T::kWeights);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kStageInputs / 16; k++) Multiply<kRows>(sum, a + 2 * k, b + 2 * k, s > piece || k > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      // The stage before this one has been read then.
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (s > piece) release(s - 1);
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    release(end - 1);
#pragma unroll
    for (int i = 0; i < kRows / 2; i++) total[i] += sum[i];
  }

  float4* const others = reinterpret_cast<float4*>(stages + T::kStages * T::kStage) + thread;  // [kRows / 8][128]
  if (half == 1) {
    const uint32_t to = InFirstBlock(others), barrier = InFirstBlock(&others_sums);
#pragma unroll
    for (int i = 0; i < kRows / 8; i++)
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + i * 128 * 16), "f"(total[4 * i]), "f"(total[4 * i + 1]), "f"(total[4 * i + 2]),
                   "f"(total[4 * i + 3])
                   : "memory");
    __syncwarp();
    if (lane == 0) {
      asm volatile("fence.acq_rel.cluster;" ::: "memory");
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
    }
    return;
  }
  BarrierWaitCluster(&others_sums, 0);
#pragma unroll
  for (int i = 0; i < kRows / 8; i++) {
    const float4 v = others[i * 128];
    total[4 * i] += v.x, total[4 * i + 1] += v.y, total[4 * i + 2] += v.z, total[4 * i + 3] += v.w;
  }
  float* const result = reinterpret_cast<float*>(stages + T::kStages * T::kStage + T::kSums + warp * kResultBytes<kRows>);
  StoreSums<kRows>(p, total, result, 0, output + warp * 16);
#endif
}

template <int kRows>
void Run(State& state, const Product& p) {
  const CUtensorMap weights = MapOf(p.w, p.out, p.in, p.in, kOutputs), x = MapOf(p.x, p.rows, p.in, p.x_stride, kRows);
  Launch(state, HalvesKernel<kRows>, static_cast<unsigned>(2 * DivideUp(p.out, kOutputs)), Halves<kRows>::kThreads, Halves<kRows>::kShared, weights, x, p,
         static_cast<int>(FirstHalf(state, p)));
}

}  // namespace

void HalvesProduct(State& state, const Product& p) {
  CHECK(p.rows <= kHalvesRows && FirstHalf(state, p) < p.in);
  if (p.rows <= 8) Run<8>(state, p);
  else if (p.rows <= 16) Run<16>(state, p);
  else if (p.rows <= 32) Run<32>(state, p);
  else Run<64>(state, p);
}

}  // namespace bamba::cuda
