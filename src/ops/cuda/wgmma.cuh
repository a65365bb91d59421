#pragma once

#include "ops/cuda/async.cuh"

// Hopper's products of warpgroups (wgmma): 64 rows of a times up to 256 rows of b, 16 columns at a time, bf16 into f32. Matrices in shared memory have rows of
// 128 bytes in groups of eight, 1024 bytes each, swizzled over 128 bytes: 16-byte unit u of row r lies at unit u ^ (r mod 8).
namespace bamba::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Of such a matrix; `columns`: bytes from 64 columns to the next, where a product takes more of them as they lie.
__device__ __forceinline__ uint64_t Describe(uint32_t address, int columns = 16) {
  return static_cast<uint64_t>(address >> 4 & 0x3fff) | static_cast<uint64_t>(columns >> 4) << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
__device__ __forceinline__ void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void CommitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from using what products write, and from overwriting what they read, before they are waited for.
template <int kCount>
__device__ __forceinline__ void Pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void Pin(uint32_t (&x)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) asm volatile("" : "+r"(x[i][j])::"memory");
}

// The first so many operands by their numbers, which are the sums.
#define BAMBA_R4 "%0, %1, %2, %3"
#define BAMBA_R8 BAMBA_R4 ", %4, %5, %6, %7"
#define BAMBA_R16 BAMBA_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BAMBA_R32 BAMBA_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BAMBA_R64 BAMBA_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BAMBA_R96 BAMBA_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BAMBA_R112 BAMBA_R96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define BAMBA_R128 BAMBA_R112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BAMBA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BAMBA_D16(i) BAMBA_D4(i), BAMBA_D4(i + 4), BAMBA_D4(i + 8), BAMBA_D4(i + 12)
#define BAMBA_D32(i) BAMBA_D16(i), BAMBA_D16(i + 16)

// d [64, kRows] = a bᵀ, or d += a bᵀ where `add`: 16 columns of a and of kRows rows of b, both in shared memory. A thread's d is wgmma's: of row 16 warp + lane / 4
// columns 8 i + 2 (lane mod 4) and the next in d[4 i], d[4 i + 1], of the row 8 further on in d[4 i + 2], d[4 i + 3].
template <int kRows>
__device__ __forceinline__ void Multiply(float (&d)[kRows / 2], uint64_t a, uint64_t b, int add) {
// For a number of rows: the sums' operands and the numbers of those after them.
#define BAMBA_MULTIPLY(rows, sums, of_a, of_b, of_add, ...)                                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #of_add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #rows "k16.f32.bf16.bf16 {" sums "}, %" #of_a \
               ", %" #of_b ", p, 1, 1, 0, 0;\n}\n"                                                                                                  \
               : __VA_ARGS__                                                                                                                        \
               : "l"(a), "l"(b), "r"(add))
  if constexpr (kRows == 8) BAMBA_MULTIPLY(8, BAMBA_R4, 4, 5, 6, BAMBA_D4(0));
  else if constexpr (kRows == 16) BAMBA_MULTIPLY(16, BAMBA_R8, 8, 9, 10, BAMBA_D4(0), BAMBA_D4(4));
  else if constexpr (kRows == 32) BAMBA_MULTIPLY(32, BAMBA_R16, 16, 17, 18, BAMBA_D16(0));
  else if constexpr (kRows == 64) BAMBA_MULTIPLY(64, BAMBA_R32, 32, 33, 34, BAMBA_D32(0));
  else if constexpr (kRows == 128) BAMBA_MULTIPLY(128, BAMBA_R64, 64, 65, 66, BAMBA_D32(0), BAMBA_D32(32));
  else if constexpr (kRows == 192) BAMBA_MULTIPLY(192, BAMBA_R96, 96, 97, 98, BAMBA_D32(0), BAMBA_D32(32), BAMBA_D32(64));
  else if constexpr (kRows == 224)
    BAMBA_MULTIPLY(224, BAMBA_R112, 112, 113, 114, BAMBA_D32(0), BAMBA_D32(32), BAMBA_D32(64), BAMBA_D16(96));
  else if constexpr (kRows == 256) BAMBA_MULTIPLY(256, BAMBA_R128, 128, 129, 130, BAMBA_D32(0), BAMBA_D32(32), BAMBA_D32(64), BAMBA_D32(96));
#undef BAMBA_MULTIPLY
}
// The same with a in registers: of 16 rows a warp's first operand of mma.m16n8k16. d [64, 32] (+)= a [64, 16] bᵀ, b [32, 16].
__device__ __forceinline__ void MultiplyRows(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" BAMBA_R16
               "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
               : BAMBA_D16(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
// d [64, 128] += a [64, 16] b, b [16, 128] by rows.
__device__ __forceinline__ void MultiplyColumns(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BAMBA_R64
               "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
               : BAMBA_D32(0), BAMBA_D32(32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef BAMBA_D32
#undef BAMBA_D16
#undef BAMBA_D4
#undef BAMBA_R128
#undef BAMBA_R112
#undef BAMBA_R96
#undef BAMBA_R64
#undef BAMBA_R32
#undef BAMBA_R16
#undef BAMBA_R8
#undef BAMBA_R4
#endif

}  // namespace bamba::cuda
