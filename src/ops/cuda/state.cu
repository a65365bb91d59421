#include "ops/cuda/state.cuh"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/units.h"

#ifdef BAMBA_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace bamba::cuda {
namespace {

// Room for the arrays of a batch. Beyond it is a broken invariant: the engine's batches are far smaller.
constexpr int64_t kMostRows = 1 << 16, kMostSequences = 1 << 12, kMostPages = int64_t{1} << 19;

constexpr int kStagings = 4;  // batches that may be on their way at a time

// A batch where it is put together in pinned memory, or where kernels read it.
struct BatchArrays {
  int32_t *tokens, *row_sequence, *pages;
  DeviceSequence* sequences;
  Choice* choices;
  LogitEdit* edits;
  int32_t rows, sequence_count, page_count, choices_count, edits_count;
};

// Fetches a batch, with the tokens that were chosen meanwhile.
__global__ void BeginKernel(BatchArrays from, BatchArrays to, const int32_t* chosen) {
  LetNextBegin();
  WaitForPrevious();
  const int32_t first = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x), step = static_cast<int32_t>(gridDim.x * blockDim.x);
  for (int32_t i = first; i < from.rows; i += step) {
    const int32_t token = from.tokens[i];
    to.tokens[i] = token >= 0 ? token : max(0, chosen[-1 - token]), to.row_sequence[i] = from.row_sequence[i];
  }
  for (int32_t i = first; i < from.sequence_count; i += step) {
    DeviceSequence sequence = from.sequences[i];
    const int32_t token = sequence.rows == 1 ? from.tokens[sequence.row] : 0;
    if (token < 0 && chosen[-1 - token] < 0) sequence.position = 0, sequence.slot = -1, sequence.first_page = -1;
    to.sequences[i] = sequence;
  }
  for (int32_t i = first; i < from.page_count; i += step) to.pages[i] = from.pages[i];
  for (int32_t i = first; i < from.choices_count; i += step) to.choices[i] = from.choices[i];
  for (int32_t i = first; i < from.edits_count; i += step) to.edits[i] = from.edits[i];
}

}  // namespace

// Where a batch is put together and goes on its way, while earlier ones may still be on theirs: pinned host memory, so that the copy doesn't wait.
struct State::Staging {
  static constexpr size_t kTokens = 0, kRowSequence = kTokens + kMostRows * sizeof(int32_t), kSequences = kRowSequence + kMostRows * sizeof(int32_t),
                          kChoices = kSequences + kMostSequences * sizeof(DeviceSequence), kEdits = kChoices + kMostSequences * sizeof(Choice),
                          kPages = kEdits + kMostEdits * sizeof(LogitEdit), kBytes = kPages + kMostPages * sizeof(int32_t);
  static BatchArrays ArraysAt(char* p) {
    BatchArrays arrays = {};
    arrays.tokens = reinterpret_cast<int32_t*>(p + kTokens), arrays.row_sequence = reinterpret_cast<int32_t*>(p + kRowSequence);
    arrays.sequences = reinterpret_cast<DeviceSequence*>(p + kSequences), arrays.choices = reinterpret_cast<Choice*>(p + kChoices);
    arrays.edits = reinterpret_cast<LogitEdit*>(p + kEdits), arrays.pages = reinterpret_cast<int32_t*>(p + kPages);
    return arrays;
  }
  char* device = nullptr;
  char* host[kStagings] = {};
  cudaEvent_t sent[kStagings] = {};
  int next = 0;
};

State::State(int device) : device_(device) {
  const auto start = std::chrono::steady_clock::now();
  BAMBA_CUDA(cudaSetDevice(device));
  BAMBA_CUDA(cudaFree(nullptr));
  context_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  cudaDeviceProp properties;
  BAMBA_CUDA(cudaGetDeviceProperties(&properties, device));
  name_ = properties.name, sms_ = properties.multiProcessorCount;
  const char* path = std::getenv("BAMBA_CUDA_PATH");
  hopper_ = properties.major == 9 && !(path && std::string_view(path) == "generic");
  overlaps_ = hopper_;
  BAMBA_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));

  const int64_t before = FreeBytes();
  scratch_ = static_cast<char*>(Allocate(kScratchBytes));
  counters_ = static_cast<int32_t*>(Allocate(kCounters * sizeof(int32_t)));
  batch_.unedited = static_cast<float*>(Allocate(kMostEdits * sizeof(float)));
  staging_ = new Staging;
  staging_->device = static_cast<char*>(Allocate(Staging::kBytes));
  for (int i = 0; i < kStagings; i++) {
    BAMBA_CUDA(cudaMallocHost(&staging_->host[i], Staging::kBytes));
    BAMBA_CUDA(cudaEventCreateWithFlags(&staging_->sent[i], cudaEventDisableTiming));
  }
  own_bytes_ = std::max<int64_t>(before - FreeBytes(), kScratchBytes + Staging::kBytes);
  for (cudaEvent_t& event : marked_) BAMBA_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const BatchArrays device_arrays = Staging::ArraysAt(staging_->device);
  batch_.tokens = device_arrays.tokens, batch_.row_sequence = device_arrays.row_sequence, batch_.pages = device_arrays.pages;
  batch_.sequences = device_arrays.sequences, batch_.choices = device_arrays.choices, batch_.edits = device_arrays.edits;
}

State::~State() = default;  // lives until the program ends: the driver takes everything back then, and faster

int64_t State::FreeBytes() const {
  size_t free = 0, total = 0;
  BAMBA_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

void* State::Allocate(size_t bytes) {
  void* p = nullptr;
  if (const cudaError_t error = cudaMalloc(&p, bytes); error != cudaSuccess) {
    cudaGetLastError();  // else the next call would report it again
    throw Error("{}: {} of its memory are not to be had ({}), {} are free; use a smaller context, batch or model", name_,
                HumanBytes(static_cast<double>(bytes)), cudaGetErrorString(error), HumanBytes(static_cast<double>(FreeBytes())));
  }
  BAMBA_CUDA(cudaMemsetAsync(p, 0, bytes, stream_));
  return p;
}

void State::Free(void* p) {
  Wait();
  BAMBA_CUDA(cudaFree(p));
}

void* State::AllocateHost(size_t bytes) {
  void* p = nullptr;
  BAMBA_CUDA(cudaMallocHost(&p, bytes));
  return p;
}

void State::FreeHost(void* p) { BAMBA_CUDA(cudaFreeHost(p)); }

void State::UploadLater(void* to, const void* from, size_t bytes) { BAMBA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_)); }

void State::DownloadLater(void* to, const void* from, size_t bytes) { BAMBA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_)); }

void State::Upload(void* to, const void* from, size_t bytes) {
  UploadLater(to, from, bytes);
  Wait();
}

void State::Download(void* to, const void* from, size_t bytes) {
  DownloadLater(to, from, bytes);
  Wait();
}

uint64_t State::Mark() {
  BAMBA_CUDA(cudaEventRecord(marked_[marks_ % kMarks], stream_));
  return marks_++;
}

void State::WaitFor(uint64_t mark) {
  CHECK_MSG(mark < marks_ && marks_ - mark <= kMarks, "mark {} of {}", mark, marks_);
  BAMBA_CUDA(cudaEventSynchronize(marked_[mark % kMarks]));
}

void State::Copy(void* to, const void* from, size_t bytes) { BAMBA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_)); }

void State::Wait() { BAMBA_CUDA(cudaStreamSynchronize(stream_)); }

void State::Begin(const Batch& batch) {
  if (recording_) return;  // the graph reads the batch of its replay
  const int i = staging_->next;
  staging_->next = (i + 1) % kStagings;
  BAMBA_CUDA(cudaEventSynchronize(staging_->sent[i]));
  BatchArrays host = Staging::ArraysAt(staging_->host[i]);
  const int64_t rows = batch.rows(), count = std::ssize(batch.sequences), choices = std::ssize(batch.choices), edits = std::ssize(batch.edits);
  CHECK_MSG(rows <= kMostRows && count <= kMostSequences && choices <= kMostSequences && edits <= kMostEdits,
            "a batch of {} rows in {} sequences, {} choices, {} edits", rows, count, choices, edits);
  std::copy(batch.tokens.begin(), batch.tokens.end(), host.tokens);
  std::copy(batch.choices.begin(), batch.choices.end(), host.choices);
  std::copy(batch.edits.begin(), batch.edits.end(), host.edits);
  batch_.rows = rows, batch_.sequence_count = static_cast<int32_t>(count), batch_.choices_count = static_cast<int32_t>(choices);
  batch_.typical = AnyTypical(batch.choices);
  batch_.most_rows = batch_.most_keys = 0;
  int64_t used = 0;
  for (int64_t j = 0; j < count; j++) {
    const Sequence& s = batch.sequences[static_cast<size_t>(j)];
    host.sequences[j] = {.position = s.position, .row = static_cast<int32_t>(s.row), .rows = static_cast<int32_t>(s.rows), .slot = s.slot, .first_page = -1};
    std::fill_n(host.row_sequence + s.row, s.rows, static_cast<int32_t>(j));
    batch_.most_rows = std::max(batch_.most_rows, s.rows), batch_.most_keys = std::max(batch_.most_keys, s.position + s.rows);
    if (s.slot < 0 || !s.pages || s.rows == 0) continue;
    const int64_t held = DivideUp(s.position + s.rows, kKvBlock);
    CHECK_MSG(used + held <= kMostPages, "a batch of more than {} pages", kMostPages);
    host.sequences[j].first_page = static_cast<int32_t>(used);
    std::copy_n(s.pages, held, host.pages + used);
    used += held;
  }
  host.rows = static_cast<int32_t>(rows), host.sequence_count = batch_.sequence_count;
  host.page_count = static_cast<int32_t>(used), host.choices_count = batch_.choices_count, host.edits_count = static_cast<int32_t>(edits);
  // One kernel that reads pinned memory is queued in a fraction of the time of a copy for each array.
  constexpr int kThreads = 256;
  const int64_t most = std::max({rows, count, used, choices, edits});
  Launch(*this, BeginKernel, static_cast<unsigned>(std::clamp<int64_t>(DivideUp(most, kThreads), 1, 2 * sms_)), kThreads, 0, host,
         Staging::ArraysAt(staging_->device), batch.chosen);
  // Kernels may read the batch before they wait for the kernel ahead of them. A kernel behind this, which is none, begins only when all before it is done.
  BAMBA_CUDA(cudaMemsetAsync(counters_, 0, sizeof(int32_t), stream_));
  BAMBA_CUDA(cudaEventRecord(staging_->sent[i], stream_));
}

void State::Replay(uint64_t key, const std::function<void()>& work) {
  const auto known = graphs_.find(key);
  if (known != graphs_.end()) {
    BAMBA_CUDA(cudaGraphLaunch(known->second, stream_));
    return;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  work();  // once as it is: what ops do at their first call (attributes, libraries) can't be recorded
  BAMBA_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  recording_ = true;
  work();
  recording_ = false;
  BAMBA_CUDA(cudaStreamEndCapture(stream_, &graph));
  BAMBA_CUDA(cudaGraphInstantiate(&ready, graph, 0));
  BAMBA_CUDA(cudaGraphDestroy(graph));
  graphs_[key] = ready;
}

void State::ForgetReplays() {
  Wait();
  for (const auto& [key, graph] : graphs_) BAMBA_CUDA(cudaGraphExecDestroy(graph));
  graphs_.clear();
}

void State::EnterBlock([[maybe_unused]] int layer) {
#ifdef BAMBA_NVTX
  if (layer == block_) return;
  if (block_ != -2) nvtxRangePop();
  nvtxRangePushA(layer < 0 ? "outside of blocks" : fmt::format("block {}", layer).c_str());
  block_ = layer;
#endif
}

double State::Seconds(const std::function<void()>& work) {
  cudaEvent_t begin, end;
  BAMBA_CUDA(cudaEventCreate(&begin));
  BAMBA_CUDA(cudaEventCreate(&end));
  BAMBA_CUDA(cudaEventRecord(begin, stream_));
  work();
  BAMBA_CUDA(cudaEventRecord(end, stream_));
  BAMBA_CUDA(cudaEventSynchronize(end));
  float milliseconds = 0;
  BAMBA_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
  BAMBA_CUDA(cudaEventDestroy(begin));
  BAMBA_CUDA(cudaEventDestroy(end));
  return milliseconds * 1e-3;
}

}  // namespace bamba::cuda

// What ops/cuda_library.cc looks for. Null, and the reason in a line, where there is no GPU to use.
extern "C" __attribute__((visibility("default"))) bamba::Accelerator* BambaOpenCuda(const char** reason) {
  static std::string why;
  try {
    int devices = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
      why = error == cudaSuccess ? "the driver shows no GPU" : std::string("the CUDA driver answers: ") + cudaGetErrorString(error);
      return *reason = why.c_str(), nullptr;
    }
    cudaDeviceProp properties;
    BAMBA_CUDA(cudaGetDeviceProperties(&properties, 0));
    if (properties.major < 8) {
      why = fmt::format("{} has compute capability {}.{}; 8.0 is the least that bamba runs on", properties.name, properties.major, properties.minor);
      return *reason = why.c_str(), nullptr;
    }
    static auto* const state = new bamba::cuda::State(0);
    return state;
  } catch (const std::exception& error) {
    why = error.what();
    return *reason = why.c_str(), nullptr;
  }
}
