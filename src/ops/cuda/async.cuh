#pragma once

#include <cstdint>

// Copies to shared memory that go on beside the thread, and barriers there for who waits for them.
namespace bamba::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes, or zeros where not `there`; `from` must be an address either way.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void CopyAsync(void* to, const void* from, bool there = true) { CopyAsync(SharedAddress(to), from, there); }
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What was written to shared memory may then be read by wgmma.
__device__ __forceinline__ void FenceForProducts() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Once all are set up: copies and, after they have met, the other threads and blocks of the cluster find them so.
__device__ __forceinline__ void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  FenceForProducts();
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(barrier) : "memory");
}
// A barrier's arrival that also waits for so many bytes of copies.
__device__ __forceinline__ void ArriveForBytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void WaitFor(uint32_t barrier, int parity) {
  asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier),
               "r"(parity)
               : "memory");
}

__device__ __forceinline__ void InitBarrier(uint64_t* barrier, int arrivals) { InitBarrier(SharedAddress(barrier), arrivals); }
__device__ __forceinline__ void Arrive(uint64_t* barrier) { Arrive(SharedAddress(barrier)); }
__device__ __forceinline__ void ArriveForBytes(uint64_t* barrier, int bytes) { ArriveForBytes(SharedAddress(barrier), bytes); }
__device__ __forceinline__ void WaitFor(uint64_t* barrier, int parity) { WaitFor(SharedAddress(barrier), parity); }
#endif

}  // namespace bamba::cuda
