#include <cuda.h>

#include <algorithm>

#include "ops/cuda/gemm.cuh"

// Hopper's own instructions for many rows: bulk copies (TMA) into swizzled shared memory by one thread, warpgroup products (wgmma) from there by one or two
// warpgroups.
namespace bamba::cuda {
namespace {

constexpr int kStageInputs = 64;
[[maybe_unused]] constexpr int kPieceStages = static_cast<int>(kPiece) / kStageInputs;

// A tile of 64·kConsumers outputs by kRows rows.
template <int kConsumers, int kRows>
struct Tiles {
  static constexpr int kThreads = (kConsumers + 1) * 128, kOutputs = 64 * kConsumers;
  static constexpr int kWeights = kOutputs * kStageInputs * 2, kX = kRows * kStageInputs * 2, kStage = kWeights + kX;
  static constexpr int kStages = std::min(8, 200 * 1024 / kStage);
  static constexpr int kResultPitch = kOutputs + 4;
  static constexpr int kShared = std::max(kStages * kStage, kRows * kResultPitch * 4) + 1024;  // stages are aligned to 1024 bytes within it
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
// A box of the matrix behind `map`, from input k and row `row` on.
__device__ __forceinline__ void CopyBox(void* to, const CUtensorMap* map, uint64_t* barrier, int k, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(to)), "l"(map),
               "r"(SharedAddress(barrier)), "r"(k), "r"(row)
               : "memory");
}

// Rows of 128 bytes in groups of eight, 1024 bytes each, swizzled over 128 bytes.
__device__ __forceinline__ uint64_t Describe(const void* p) {
  return (SharedAddress(p) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// d = a bᵀ, or d += a bᵀ where `add`: 16 inputs of 64 outputs (a) and kRows rows (b).
template <int kRows>
__device__ __forceinline__ void Multiply(float (&d)[kRows / 2], uint64_t a, uint64_t b, int add) {
#define BAMBA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BAMBA_D32(i) BAMBA_D4(i), BAMBA_D4(i + 4), BAMBA_D4(i + 8), BAMBA_D4(i + 12), BAMBA_D4(i + 16), BAMBA_D4(i + 20), BAMBA_D4(i + 24), BAMBA_D4(i + 28)
  if constexpr (kRows == 32) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D4(0), BAMBA_D4(4), BAMBA_D4(8), BAMBA_D4(12)
        : "l"(a), "l"(b), "r"(add));
  } else if constexpr (kRows == 64) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D32(0)
        : "l"(a), "l"(b), "r"(add));
  } else if constexpr (kRows == 128) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D32(0), BAMBA_D32(32)
        : "l"(a), "l"(b), "r"(add));
  } else if constexpr (kRows == 192) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D32(0), BAMBA_D32(32), BAMBA_D32(64)
        : "l"(a), "l"(b), "r"(add));
  }
#undef BAMBA_D32
#undef BAMBA_D4
}
#endif

template <int kConsumers, int kRows>
__global__ void __launch_bounds__(Tiles<kConsumers, kRows>::kThreads, 1) HopperKernel(const __grid_constant__ CUtensorMap weights,
                                                                                                const __grid_constant__ CUtensorMap x, const Product p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Tiles<kConsumers, kRows>;
  constexpr int kOutputs = T::kOutputs;
  constexpr bool kMoveRegisters = kConsumers == 2 && kRows > 128;  // from the copying warps to the others
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages];
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int first_row = static_cast<int>(blockIdx.x) * kRows, first_output = static_cast<int>(blockIdx.y) * kOutputs;
  const int count = static_cast<int>(DivideUp(p.in, kStageInputs)), group = static_cast<int>(threadIdx.x) / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; s++) BarrierInit(&full[s], 1), BarrierInit(&empty[s], kConsumers * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  if (group == 0) {
    if constexpr (kMoveRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      // The weights of the first stages needn't wait for the kernel ahead.
      for (int s = 0; s < min(count, T::kStages); s++) {
        BarrierExpect(&full[s], T::kStage);
        CopyBox(stages + s * T::kStage, &weights, &full[s], s * kStageInputs, first_output);
      }
      WaitForPrevious();
      for (int s = 0; s < min(count, T::kStages); s++) CopyBox(stages + s * T::kStage + T::kWeights, &x, &full[s], s * kStageInputs, first_row);
      for (int s = T::kStages; s < count; s++) {
        const int slot = s % T::kStages;
        BarrierWait(&empty[slot], (s / T::kStages - 1) & 1);
        BarrierExpect(&full[slot], T::kStage);
        CopyBox(stages + slot * T::kStage, &weights, &full[slot], s * kStageInputs, first_output);
        CopyBox(stages + slot * T::kStage + T::kWeights, &x, &full[slot], s * kStageInputs, first_row);
      }
    }
    WaitForPrevious();
    return;
  }

  if constexpr (kMoveRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  WaitForPrevious();
  const int consumer = group - 1, thread = static_cast<int>(threadIdx.x) % 128;
  float total[kRows / 2] = {}, sum[kRows / 2] = {};
  for (int first = 0; first < count; first += kPieceStages) {
    const int end = min(first + kPieceStages, count);
    for (int s = first; s < end; s++) {
      const int slot = s % T::kStages;
      BarrierWait(&full[slot], s / T::kStages & 1);
      const uint64_t a = Describe(stages + slot * T::kStage + consumer * (64 * 128)), b = Describe(stages + slot * T::kStage + T::kWeights);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kStageInputs / 16; k++) Multiply<kRows>(sum, a + 2 * k, b + 2 * k, s > first || k > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      // The stage before this one has been read then.
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (thread % 32 == 0 && s > first) BarrierArrive(&empty[(s - 1) % T::kStages]);
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (thread % 32 == 0) BarrierArrive(&empty[(end - 1) % T::kStages]);
#pragma unroll
    for (int i = 0; i < kRows / 2; i++) total[i] += sum[i];
  }

  // Through shared memory, so that a row's outputs are written side by side. Both consumers have read all of the stages by then.
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers * 128) : "memory");
  float* const result = reinterpret_cast<float*>(stages);  // [row][output]
  const int output = consumer * 64 + thread / 32 * 16 + thread % 32 / 4, row = thread % 4 * 2;
#pragma unroll
  for (int i = 0; i < kRows / 2; i++) result[(i / 4 * 8 + row + i % 2) * T::kResultPitch + output + i % 4 / 2 * 8] = total[i];
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers * 128) : "memory");
  for (int e = static_cast<int>(threadIdx.x) - 128; e < kRows * kOutputs; e += kConsumers * 128) {
    const int64_t r = first_row + e / kOutputs, o = first_output + e % kOutputs;
    if (r < p.rows && o < p.out) StoreResult(p, r, o, result[e / kOutputs * T::kResultPitch + e % kOutputs]);
  }
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);
Encode Encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) != cudaSuccess) return Encode{};
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : Encode{};
  }();
  return encode;
}

// Boxes of `box` rows by a stage's inputs; what lies outside of the matrix is 0.
bool Map(CUtensorMap& map, const void* data, int64_t rows, int64_t in, int64_t stride, int box) {
  const cuuint64_t size[] = {static_cast<cuuint64_t>(in), static_cast<cuuint64_t>(rows)}, pitch[] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t boxes[] = {kStageInputs, static_cast<cuuint32_t>(box)}, steps[] = {1, 1};
  return Encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), size, pitch, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <int kConsumers, int kRows>
void Run(State& state, const Product& p) {
  using T = Tiles<kConsumers, kRows>;
  CUtensorMap weights, x;
  CHECK(Map(weights, p.w, p.out, p.in, p.in, T::kOutputs) && Map(x, p.x, p.rows, p.in, p.x_stride, kRows));
  const dim3 grid(static_cast<unsigned>(DivideUp(p.rows, kRows)), static_cast<unsigned>(DivideUp(p.out, T::kOutputs)));
  Launch(state, HopperKernel<kConsumers, kRows>, grid, T::kThreads, T::kShared, weights, x, p);
}

}  // namespace

bool HasHopperProduct(const State& state) { return state.hopper() && Encoder() != nullptr; }

void HopperProduct(State& state, const Product& p) {
  CHECK(p.rows < (int64_t{1} << 30) && p.out < (int64_t{1} << 30) && p.in < (int64_t{1} << 30));
  // The least rounds of blocks, each as long as what it reads or multiplies. Results don't depend on it.
  const auto rounds = [&](int64_t outputs, int64_t rows) { return DivideUp(DivideUp(p.out, outputs) * DivideUp(p.rows, rows), state.sms()); };
  if (p.rows <= 64) {
    const bool narrow = rounds(64, 64) * (64 + p.rows) < rounds(128, 64) * (128 + p.rows);
    if (p.rows <= 32) return narrow ? Run<1, 32>(state, p) : Run<2, 32>(state, p);
    return narrow ? Run<1, 64>(state, p) : Run<2, 64>(state, p);
  }
  const auto cost = [&](int64_t rows) { return rounds(128, rows) * (rows + 24); };
  const int64_t least = std::min({cost(64), cost(128), cost(192)});
  if (least == cost(192)) Run<2, 192>(state, p);
  else if (least == cost(128)) Run<2, 128>(state, p);
  else Run<2, 64>(state, p);
}

}  // namespace bamba::cuda
