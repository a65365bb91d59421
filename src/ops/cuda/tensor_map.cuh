#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

#include "ops/cuda/async.cuh"
#include "ops/cuda/state.cuh"

// Hopper's copies of boxes (TMA): one thread asks for a box of a bf16 matrix, which comes to shared memory swizzled as wgmma wants it, by itself.
namespace bamba::cuda {

// Whether the device has them and the driver can describe matrices to them.
bool HasTensorMaps(const State& state);

struct MapDimension {
  int64_t size, stride;  // numbers; the first dimension's stride is 1
  int box;
};
// What lies outside of the matrix is 0, but copies whose box reaches there are slower. `sector`: bytes that the L2 cache fetches at least, 128 or 256.
CUtensorMap TensorMap(const void* data, std::initializer_list<MapDimension> dimensions, int sector);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A box of a matrix of two dimensions from (column, row) on; the barrier counts its bytes.
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(barrier),
               "r"(column), "r"(row)
               : "memory");
}
// The first copy needn't wait for its map then.
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
#endif

}  // namespace bamba::cuda
