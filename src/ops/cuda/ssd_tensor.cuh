#pragma once

#include "ops/cuda/async.cuh"
#include "ops/cuda/rows.cuh"

// What the scan's kernels on tensor cores share, for heads of 64 with a state of 128 in bf16.
namespace bamba::cuda {

// Four 8x8 matrices, of which lanes 8i … 8i + 7 name the rows of the i-th.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void LoadTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// c [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// low = high + rest + at most 2⁻¹⁶ of it, for a pair of numbers.
__device__ __forceinline__ void SplitPair(float low, float high, uint32_t& leading, uint32_t& rest) {
  const uint32_t l = __float_as_uint(low), h = __float_as_uint(high);
  leading = __byte_perm(l, h, 0x7632);
  rest = PackPair(low - __uint_as_float(l & 0xffff0000u), high - __uint_as_float(h & 0xffff0000u));
}

// In shared memory, 16-byte unit u of row r lies at unit u ^ (r mod 8), so that eight rows' equal units lie in different banks. Rows are at least 128 bytes,
// and begin at multiples of their length, so that a flip of bits of u is one of bits of the address.
__device__ __forceinline__ uint32_t Place(int row, int unit, int row_bytes) { return static_cast<uint32_t>(row * row_bytes + ((unit ^ (row & 7)) << 4)); }

}  // namespace bamba::cuda
