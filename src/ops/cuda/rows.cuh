#pragma once

#include "ops/cuda/state.cuh"

// Numbers in vectors, sums over a block and activation functions: what the ops that go along rows share.
namespace bamba::cuda {

// Eight consecutive numbers as floats. `whole`: there are eight and they lie at a multiple of 16 bytes; else the first `count` are read or written.
__device__ __forceinline__ void Load8(const float* from, bool whole, int count, float (&v)[8]) {
  if (whole) {
    const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? from[i] : 0;
  }
}
__device__ __forceinline__ float LowHalf(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighHalf(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ void Unpack8(const uint4& u, float (&v)[8]) {
  v[0] = LowHalf(u.x), v[1] = HighHalf(u.x), v[2] = LowHalf(u.y), v[3] = HighHalf(u.y);
  v[4] = LowHalf(u.z), v[5] = HighHalf(u.z), v[6] = LowHalf(u.w), v[7] = HighHalf(u.w);
}
__device__ __forceinline__ void Load8(const bf16* from, bool whole, int count, float (&v)[8]) {
  if (whole) {
    Unpack8(*reinterpret_cast<const uint4*>(from), v);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? ToFloat(from[i]) : 0;
  }
}
__device__ __forceinline__ void Store8(float* to, bool whole, int count, const float (&v)[8]) {
  if (whole) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < count) to[i] = v[i];
  }
}
__device__ __forceinline__ void Store8(bf16* to, bool whole, int count, const float (&v)[8]) {
  if (whole) {
    *reinterpret_cast<uint4*>(to) = make_uint4(PackPair(v[0], v[1]), PackPair(v[2], v[3]), PackPair(v[4], v[5]), PackPair(v[6], v[7]));
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < count) to[i] = FromFloat<bf16>(v[i]);
  }
}

inline bool Aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
// Whether every row of a matrix begins at a multiple of 16 bytes.
inline bool Aligned16(const Tensor& t) { return Aligned16(t.data()) && t.stride(0) * static_cast<int64_t>(SizeOf(t.dtype())) % 16 == 0; }

// x / (1 + e^−x), to f32's last digits where T is f32, to well below bf16's where it is bf16.
template <typename T>
__device__ __forceinline__ float Silu(float x) {
  if constexpr (std::is_same_v<T, float>) {
    const float e = expf(-fabsf(x));
    return x * ((x >= 0 ? 1.0f : e) / (1.0f + e));
  } else {
    float e, quotient;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(1.0f + e));
    return x * quotient;
  }
}

// The sum over a block of at most 1024 threads, a multiple of 32, in an order that depends on their number alone. Every thread gets it. `partial`: 32 floats of
// shared memory that nobody else uses. Once in a kernel.
__device__ __forceinline__ float BlockSum(float v, float* partial) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  v = lane < warps ? partial[lane] : 0;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

}  // namespace bamba::cuda
