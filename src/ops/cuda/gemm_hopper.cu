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
  static constexpr int kResultPitch = 16 + 4, kResult = 32 * kResultPitch * 4;  // a warp's 16 outputs by 32 rows on their way out
  static constexpr int kStages = std::min(kRows > 16 ? 8 : 16, 200 * 1024 / kStage);
  static constexpr int kShared = kStages * kStage + kConsumers * 4 * kResult + 1024;  // stages are aligned to 1024 bytes within it
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
  if constexpr (kRows == 8) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D4(0)
        : "l"(a), "l"(b), "r"(add));
  } else if constexpr (kRows == 16) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0;\n}\n"
        : BAMBA_D4(0), BAMBA_D4(4)
        : "l"(a), "l"(b), "r"(add));
  } else if constexpr (kRows == 32) {
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

// Where the n-th tile lies: rows by rows within bands of kBand tiles, so that what the blocks read at a time stays in the cache.
struct Grid {
  int row_tiles, output_tiles;
  __host__ __device__ int count() const { return row_tiles * output_tiles; }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ void Place(int n, int* row, int* output) const {
    constexpr int kBand = 12;
    const int first = n / (kBand * output_tiles) * kBand, in_band = n % (kBand * output_tiles), height = kBand < row_tiles - first ? kBand : row_tiles - first;
    *row = first + in_band % height, *output = in_band / height;
  }
#endif
};

template <int kConsumers, int kRows>
__global__ void __launch_bounds__(Tiles<kConsumers, kRows>::kThreads, 1)
    HopperKernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const Product p, const Grid grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = Tiles<kConsumers, kRows>;
  constexpr int kOutputs = T::kOutputs;
  constexpr bool kMoveRegisters = kConsumers == 2 && kRows > 128;  // from the copying warps to the others
  extern __shared__ char shared[];
  __shared__ uint64_t full[T::kStages], empty[T::kStages];
  LetNextBegin();
  char* const stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  const int count = static_cast<int>(DivideUp(p.in, kStageInputs)), group = static_cast<int>(threadIdx.x) / 128;
  const int first_tile = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; s++) BarrierInit(&full[s], 1), BarrierInit(&empty[s], kConsumers * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  if (group == 0) {
    if constexpr (kMoveRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      const auto copy_weights = [&](int slot, int k, int output) {
        BarrierExpect(&full[slot], T::kStage);
        CopyBox(stages + slot * T::kStage, &weights, &full[slot], k, output);
      };
      const auto copy_x = [&](int slot, int k, int row) {
        CopyBox(stages + slot * T::kStage + T::kWeights, &x, &full[slot], k, row);
      };
      int stage = 0;
      for (int tile = first_tile; tile < grid.count(); tile += step) {
        int row, output, s = 0;
        grid.Place(tile, &row, &output);
        row *= kRows, output *= kOutputs;
        if (tile == first_tile) {
          // The weights of the first stages needn't wait for the kernel ahead.
          for (s = 0; s < min(count, T::kStages); s++) copy_weights(s, s * kStageInputs, output);
          WaitForPrevious();
          for (s = 0; s < min(count, T::kStages); s++) copy_x(s, s * kStageInputs, row);
          stage = s;
        }
        for (; s < count; s++, stage++) {
          const int slot = stage % T::kStages;
          if (stage >= T::kStages) BarrierWait(&empty[slot], (stage / T::kStages - 1) & 1);
          copy_weights(slot, s * kStageInputs, output);
          copy_x(slot, s * kStageInputs, row);
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
      if (lane == 0) BarrierArrive(&empty[stage % T::kStages]);
    };
    float* const result = reinterpret_cast<float*>(stages + T::kStages * T::kStage + (consumer * 4 + warp) * T::kResult);  // [row][output]
    const bool vectors = (reinterpret_cast<uintptr_t>(p.y) % 16 | p.y_stride % 8) == 0;
    int stage = 0;
    for (int tile = first_tile; tile < grid.count(); tile += step) {
      float total[kRows / 2] = {}, sum[kRows / 2] = {};
      for (int first = 0; first < count; first += kPieceStages) {
        const int end = min(first + kPieceStages, count);
        for (int s = first; s < end; s++, stage++) {
          const int slot = stage % T::kStages;
          BarrierWait(&full[slot], stage / T::kStages & 1);
          const uint64_t a = Describe(stages + slot * T::kStage + consumer * (64 * 128)), b = Describe(stages + slot * T::kStage + T::kWeights);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int k = 0; k < kStageInputs / 16; k++) Multiply<kRows>(sum, a + 2 * k, b + 2 * k, s > first || k > 0);
          asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
          // The stage before this one has been read then.
          asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
          if (s > first) release(stage - 1);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        release(stage - 1);
#pragma unroll
        for (int i = 0; i < kRows / 2; i++) total[i] += sum[i];
      }

      // Through shared memory, 32 rows at a time, so that a row's outputs are written side by side.
      int row, output;
      grid.Place(tile, &row, &output);
      row *= kRows, output = output * kOutputs + consumer * 64 + warp * 16;
#pragma unroll
      for (int chunk = 0; chunk < (kRows + 31) / 32; chunk++) {
        constexpr int kChunkRows = std::min(kRows, 32);
#pragma unroll
        for (int i = 0; i < kChunkRows / 2; i++)
          result[(i / 4 * 8 + lane % 4 * 2 + i % 2) * T::kResultPitch + lane / 4 + i % 4 / 2 * 8] = total[chunk * 16 + i];
        __syncwarp();
        if (vectors && output + 16 <= p.out) {
          const int lanes = p.wide ? 4 : 2;  // of a row, 16 bytes each
          for (int r = lane / lanes; r < kChunkRows; r += 32 / lanes) {
            const int64_t at_row = row + chunk * 32 + r;
            if (at_row >= p.rows) continue;
            const int o = lane % lanes * (16 / lanes);
            const float4* const from = reinterpret_cast<const float4*>(result + r * T::kResultPitch + o);
            const float* const bias = p.bias ? p.bias + output + o : nullptr;
            float4 v = from[0];
            if (bias) v.x += bias[0], v.y += bias[1], v.z += bias[2], v.w += bias[3];
            if (p.wide) {
              *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at_row * p.y_stride + output + o) = v;
            } else {
              float4 w = from[1];
              if (bias) w.x += bias[4], w.y += bias[5], w.z += bias[6], w.w += bias[7];
              union {
                __nv_bfloat162 pairs[4];
                uint4 bits;
              } packed;
              packed.pairs[0] = __floats2bfloat162_rn(v.x, v.y), packed.pairs[1] = __floats2bfloat162_rn(v.z, v.w);
              packed.pairs[2] = __floats2bfloat162_rn(w.x, w.y), packed.pairs[3] = __floats2bfloat162_rn(w.z, w.w);
              *reinterpret_cast<uint4*>(static_cast<bf16*>(p.y) + at_row * p.y_stride + output + o) = packed.bits;
            }
          }
        } else {
          for (int e = lane; e < kChunkRows * 16; e += 32) {
            const int64_t at_row = row + chunk * 32 + e / 16;
            if (at_row < p.rows && output + e % 16 < p.out) StoreResult(p, at_row, output + e % 16, result[e / 16 * T::kResultPitch + e % 16]);
          }
        }
        __syncwarp();
      }
    }
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
  const Grid grid{static_cast<int>(DivideUp(p.rows, kRows)), static_cast<int>(DivideUp(p.out, T::kOutputs))};
  Launch(state, HopperKernel<kConsumers, kRows>, static_cast<unsigned>(std::min(grid.count(), state.sms())), T::kThreads, T::kShared, weights, x, p, grid);
}

}  // namespace

bool HasHopperProduct(const State& state) { return state.hopper() && Encoder() != nullptr; }

void HopperProduct(State& state, const Product& p) {
  CHECK(p.rows < (int64_t{1} << 30) && p.out < (int64_t{1} << 30) && p.in < (int64_t{1} << 30));
  // The least rounds of blocks, each as long as what it reads or multiplies. Results don't depend on it.
  const auto rounds = [&](int64_t outputs, int64_t rows) { return DivideUp(DivideUp(p.out, outputs) * DivideUp(p.rows, rows), state.sms()); };
  if (p.rows <= 64) {
    const bool narrow = rounds(64, 64) * (64 + p.rows) < rounds(128, 64) * (128 + p.rows);
    if (p.rows <= 8) return narrow ? Run<1, 8>(state, p) : Run<2, 8>(state, p);
    if (p.rows <= 16) return narrow ? Run<1, 16>(state, p) : Run<2, 16>(state, p);
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
