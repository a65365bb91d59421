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
// The other way, what of the box lies within the matrix. A thread waits for its own ones: until shared memory has been read for all but the last kLeft, or until
// all are where they belong.
__device__ __forceinline__ void StoreBox(const CUtensorMap* map, uint32_t from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\ncp.async.bulk.commit_group;" ::"l"(map), "r"(from), "r"(column), "r"(row)
               : "memory");
}
template <int kLeft>
__device__ __forceinline__ void WaitForStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}
__device__ __forceinline__ void WaitForStores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// The first copy needn't wait for its map then.
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
#endif

}  // namespace bamba::cuda
