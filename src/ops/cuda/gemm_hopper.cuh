#pragma once

#include <algorithm>

#include "ops/cuda/gemm.cuh"
#include "ops/cuda/tensor_map.cuh"
#include "ops/cuda/wgmma.cuh"

// What the products by Hopper's instructions share: copies of W and x by one thread each, halves of a tile in the two blocks of a cluster, results on their way out.
namespace bamba::cuda {

inline constexpr int kStageInputs = 64;  // of a box: rows of 128 bytes

// The map of a matrix in boxes of `box` rows by a stage's inputs; what lies outside of the matrix is 0.
CUtensorMap MapOf(const void* data, int64_t rows, int64_t in, int64_t stride, int box);
// The same, `boxes` side by side at a time, which come one after the other; `in` is a multiple of a stage's inputs.
CUtensorMap MapOfBoxes(const void* data, int64_t rows, int64_t in, int64_t stride, int box, int boxes);

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define BAMBA_CLUSTER(n)  // there are none, and the kernel is empty
#else
#define BAMBA_CLUSTER(n) __cluster_dims__(n)
#endif

// Where the n-th tile lies: rows by rows within bands of kBand tiles, so that what the blocks read at a time stays in the cache.
template <int kBand>
struct Grid {
  int row_tiles, output_tiles;
  __host__ __device__ int count() const { return row_tiles * output_tiles; }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ void Place(int n, int* row, int* output) const {
    const int first = n / (kBand * output_tiles) * kBand, in_band = n % (kBand * output_tiles), height = kBand < row_tiles - first ? kBand : row_tiles - first;
    *row = first + in_band % height, *output = in_band / height;
  }
#endif
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// WaitFor where another block of the cluster arrives.
__device__ __forceinline__ void WaitForCluster(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
// Arrives at what is this block's barrier at the same place in the cluster's block `rank`.
__device__ __forceinline__ void ArriveInCluster(uint64_t* barrier, int rank) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(SharedAddress(barrier)),
               "r"(rank)
               : "memory");
}
__device__ __forceinline__ int RankInCluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void SyncCluster() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// A thread's sums to where the cluster's block `rank` has what lies at `to` in this one, every fourth 128 further on; its barrier counts their bytes.
template <int kRows>
__device__ __forceinline__ void SendSums(const float (&sums)[kRows / 2], const float4* to, const uint64_t* barrier, int rank) {
  const auto there = [&](const void* p) {
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(SharedAddress(p)), "r"(rank));
    return at;
  };
  const uint32_t first = there(to), counts = there(barrier);
#pragma unroll
  for (int i = 0; i < kRows / 2; i += 4)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(first + i / 4 * 128 * 16), "f"(sums[i]),
                 "f"(sums[i + 1]), "f"(sums[i + 2]), "f"(sums[i + 3]), "r"(counts)
                 : "memory");
}
// The same to this block's memory, and sums that lie like that added.
template <int kRows>
__device__ __forceinline__ void SaveSums(const float (&sums)[kRows / 2], float4* to) {
#pragma unroll
  for (int i = 0; i < kRows / 2; i += 4) to[i / 4 * 128] = {sums[i], sums[i + 1], sums[i + 2], sums[i + 3]};
}
template <int kRows>
__device__ __forceinline__ void AddSums(float (&sums)[kRows / 2], const float4* from) {
#pragma unroll
  for (int i = 0; i < kRows / 2; i += 4) {
    const float4 v = from[i / 4 * 128];
    sums[i] += v.x, sums[i + 1] += v.y, sums[i + 2] += v.z, sums[i + 3] += v.w;
  }
}
// The boxes from number `box` along the inputs on, for a map of MapOfBoxes.
__device__ __forceinline__ void CopyBoxes(void* to, const CUtensorMap* map, uint64_t* barrier, int box, int row) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(SharedAddress(to)), "l"(map),
               "r"(SharedAddress(barrier)), "r"(0), "r"(row), "r"(box)
               : "memory");
}

// Of what no one reads again soon.
__device__ __forceinline__ uint64_t SoonEvicted() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// The same of weights.
__device__ __forceinline__ void CopyWeights(void* to, const CUtensorMap* map, uint64_t* barrier, int box, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(0), "r"(row), "r"(box), "l"(SoonEvicted())
      : "memory");
}
// A box of weights to the same place in both blocks of a cluster; the barrier of each counts its bytes.
__device__ __forceinline__ void CopyWeightsToBoth(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(uint16_t{0b11}), "l"(SoonEvicted())
      : "memory");
}
// What a copying thread does: copy(slot, tile, s) for `count` stages of tiles first, first + step, … < end, from the first one's stage `from` on, as soon as their
// slots are empty.
template <int kStages, typename Copy>
__device__ __forceinline__ void CopyStages(uint64_t (&empty)[kStages], int first, int end, int step, int count, int from, const Copy& copy) {
  int slot = from, parity = 1;
  for (int tile = first; tile < end; tile += step)
    for (int s = tile == first ? from : 0; s < count; s++) {
      if (slot == kStages) slot = 0, parity ^= 1;
      WaitFor(&empty[slot], parity);  // at once as long as the slot is new
      copy(slot++, tile, s);
    }
}
#endif

// A warp's sums, 16 outputs from `output` on by kRows rows from `row` on as wgmma leaves them, to y. Through `result` in shared memory, 32 rows at a time, so
// that a row's outputs are written side by side.
inline constexpr int kResultPitch = 16 + 4;  // numbers
template <int kRows>
inline constexpr int kResultBytes = std::min(kRows, 32) * kResultPitch * 4;
template <int kRows>
__device__ __forceinline__ void StoreSums(const Product& p, const float (&total)[kRows / 2], float* result, int row, int output) {
  constexpr int kChunkRows = std::min(kRows, 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool vectors = (reinterpret_cast<uintptr_t>(p.y) % 16 | p.y_stride % 8) == 0;
#pragma unroll
  for (int chunk = 0; chunk < (kRows + 31) / 32; chunk++) {
#pragma unroll
    for (int i = 0; i < kChunkRows / 2; i++) result[(i / 4 * 8 + lane % 4 * 2 + i % 2) * kResultPitch + lane / 4 + i % 4 / 2 * 8] = total[chunk * 16 + i];
    __syncwarp();
    if (vectors && output + 16 <= p.out) {
      const int lanes = p.wide ? 4 : 2;  // of a row, 16 bytes each
      for (int r = lane / lanes; r < kChunkRows; r += 32 / lanes) {
        const int64_t at_row = row + chunk * 32 + r;
        if (at_row >= p.rows) continue;
        const int o = lane % lanes * (16 / lanes);
        const float4* const from = reinterpret_cast<const float4*>(result + r * kResultPitch + o);
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
        if (at_row < p.rows && output + e % 16 < p.out) StoreResult(p, at_row, output + e % 16, result[e / 16 * kResultPitch + e % 16]);
      }
    }
    __syncwarp();
  }
}

}  // namespace bamba::cuda
