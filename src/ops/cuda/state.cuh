#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "base/check.h"
#include "base/error.h"
#include "ops/context.h"
#include "ops/op_table.h"

// What the CUDA ops share: the device's state on the host's side, the batch as kernels see it, and how a kernel is launched.
namespace bamba::cuda {

// For calls that fail only where the program is wrong or the device is lost.
#define BAMBA_CUDA(call)                                                                                                       \
  do {                                                                                                                         \
    const cudaError_t bamba_cuda_error = (call);                                                                               \
    CHECK_MSG(bamba_cuda_error == cudaSuccess, "{}: {}", #call, cudaGetErrorString(bamba_cuda_error));                         \
  } while (0)

// ops/batch.h's Sequence as kernels read it.
struct DeviceSequence {
  int64_t position;     // tokens before its first row
  int32_t row, rows;
  int32_t slot;         // −1: stateless
  int32_t first_page;   // of its page table in DeviceBatch::pages; −1: none
};

// The batch in the device's memory. The addresses never change, so that a replayed graph reads the batch of its replay; counts are the host's.
struct DeviceBatch {
  const int32_t* tokens;             // [rows]
  const int32_t* row_sequence;       // [rows] the sequence that a row belongs to
  const DeviceSequence* sequences;   // [sequence_count]
  const int32_t* pages;              // page tables one after the other
  const Choice* choices;             // [choices_count]
  LogitEdit* edits;                  // [kMostEdits] at most
  float* unedited;                   // [kMostEdits] the logits that Edit changed
  int64_t rows = 0;
  int32_t sequence_count = 0, choices_count = 0;
  bool typical = false;  // some choice has a typical_p below 1
  int64_t most_rows = 0;  // of a sequence of this batch
  int64_t most_keys = 0;  // position + rows of a sequence of this batch; not to be used by what may be replayed
};

class State final : public Accelerator {
 public:
  explicit State(int device);
  ~State() override;

  const OpTable& ops() const override { return kTable; }
  std::string name() const override { return name_; }
  int64_t FreeBytes() const override;
  int64_t OwnBytes() const override { return own_bytes_; }
  double ContextSeconds() const override { return context_seconds_; }
  void* Allocate(size_t bytes) override;
  void Free(void* p) override;
  void Upload(void* to, const void* from, size_t bytes) override;
  void Download(void* to, const void* from, size_t bytes) override;
  void Copy(void* to, const void* from, size_t bytes) override;
  void* AllocateHost(size_t bytes) override;
  void FreeHost(void* p) override;
  void UploadLater(void* to, const void* from, size_t bytes) override;
  void DownloadLater(void* to, const void* from, size_t bytes) override;
  uint64_t Mark() override;
  void WaitFor(uint64_t mark) override;
  void UploadAll(std::span<const Transfer> transfers, const std::function<void(int64_t)>& progress) override;
  void FillRandom(const Tensor& tensor, uint64_t seed, float low, float high) override;
  void Edit(const Tensor& logits, const int32_t* chosen) override;
  void Logprobs(const Tensor& logits, const int32_t* tokens, LogprobParts* parts) override;
  void ArgMax(const Tensor& logits, int32_t* tokens) override;
  void Choose(const Tensor& logits, int32_t* tokens) override;
  void Begin(const Batch& batch) override;
  void Replay(uint64_t key, const std::function<void()>& work) override;
  void ForgetReplays() override;
  void Wait() override;
  double Seconds(const std::function<void()>& work) override;
  double ReadBandwidth() override;

  const DeviceBatch& batch() const { return batch_; }
  cudaStream_t stream() const { return stream_; }
  int sms() const { return sms_; }          // multiprocessors
  bool hopper() const { return hopper_; }   // sm_90a code (TMA, wgmma) may run; BAMBA_CUDA_PATH=generic forbids it
  bool overlaps() const { return overlaps_; }  // a kernel may begin before the one ahead of it has ended (Launch)

  // Memory for partial results within one op: nothing of it outlives the op. Zeroed counters are left zero by whoever uses them.
  static constexpr size_t kScratchBytes = size_t{256} << 20;
  static constexpr int64_t kCounters = 1 << 16;
  char* scratch() const { return scratch_; }
  int32_t* counters() const { return counters_; }  // [kCounters], all 0 between ops

  // Of ops/context.h's layer: a range of its own for NVIDIA's profilers.
  void EnterBlock(int layer);

 private:
  struct Staging;  // of batches on their way
  std::string name_;
  int device_ = 0, sms_ = 0;
  bool hopper_ = false, overlaps_ = false, recording_ = false;
  int64_t own_bytes_ = 0;
  double context_seconds_ = 0;
  cudaStream_t stream_ = nullptr;
  char* scratch_ = nullptr;
  int32_t* counters_ = nullptr;
  int block_ = -2;  // see EnterBlock; −2: none yet
  DeviceBatch batch_;
  Staging* staging_ = nullptr;
  static constexpr uint64_t kMarks = 4;  // that may be waited for at a time
  cudaEvent_t marked_[kMarks] = {};
  uint64_t marks_ = 0;
  std::unordered_map<uint64_t, cudaGraphExec_t> graphs_;
};

inline State& StateOf(Context& ctx) {
  State& state = static_cast<State&>(*ctx.accelerator);
#ifdef BAMBA_NVTX
  state.EnterBlock(ctx.layer);
#endif
  return state;
}

// Queues a kernel. It may begin while the kernel ahead of it still runs, so the first thing that every kernel does with memory that another kernel writes, and
// the last it may do before it ends, is behind WaitForPrevious(); before that it may only compute and read weights. Every kernel calls WaitForPrevious, else
// what comes after it would not wait for what came before it.
template <typename... Parameters, typename... Args>
void Launch(State& state, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024) BAMBA_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = state.stream();
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap, config.numAttrs = state.overlaps() ? 1 : 0;
  BAMBA_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
}

__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel's blocks begin where there is room for them: they then load weights while this one ends.
__device__ __forceinline__ void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
template <typename T>
__device__ __forceinline__ T FromFloat(float x) {
  if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  else return x;
}

// A matrix of activations as kernels see it: rows `stride` numbers apart.
template <typename T>
struct MatrixView {
  T* data;
  int64_t stride;
  __device__ T* Row(int64_t i) const { return data + i * stride; }
};
template <typename T>
MatrixView<T> ViewOf(const Tensor& t) {
  return {static_cast<T*>(t.data()), t.stride(0)};
}

// Calls f(T{}) with the C++ type of a dtype that activations (f32, bf16) or weights (also f16) have.
template <typename F>
void WithActivation(Dtype dtype, const F& f) {
  CHECK_MSG(dtype == Dtype::kF32 || dtype == Dtype::kBf16, "activations in {}", Name(dtype));
  dtype == Dtype::kF32 ? f(float{}) : f(bf16{});
}
template <typename F>
void WithWeight(Dtype dtype, const F& f) {
  if (dtype == Dtype::kF16) return f(__half{});
  WithActivation(dtype, f);
}

__host__ __device__ constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace bamba::cuda
