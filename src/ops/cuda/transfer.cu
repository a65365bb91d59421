#include <atomic>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "ops/cuda/gemm.cuh"

// What fills the device's memory, and how fast it can be read.
namespace bamba::cuda {
namespace {

// Copies are cut in pieces of this size: large enough for the bus, and small, since pinning memory takes a millisecond for each of its megabytes.
constexpr size_t kUploadPiece = size_t{2} << 20;

// An upload of so many bytes takes longer than opening cuBLASLt.
constexpr size_t kLongUpload = size_t{8} << 30;

// A thread's way to the device: two pinned buffers, so that it fills one while the other is on its way.
class Lane {
 public:
  explicit Lane(int device) {
    BAMBA_CUDA(cudaSetDevice(device));
    BAMBA_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (int i = 0; i < 2; i++) {
      BAMBA_CUDA(cudaMallocHost(&pinned_[i], kUploadPiece));
      BAMBA_CUDA(cudaEventCreateWithFlags(&sent_[i], cudaEventDisableTiming));
    }
  }
  ~Lane() {
    cudaStreamSynchronize(stream_);
    for (int i = 0; i < 2; i++) cudaFreeHost(pinned_[i]), cudaEventDestroy(sent_[i]);
    cudaStreamDestroy(stream_);
  }
  void Send(char* to, const char* from, size_t bytes) {
    const int i = next_ ^= 1;
    BAMBA_CUDA(cudaEventSynchronize(sent_[i]));
    ExpectReading(from, bytes);
    std::memcpy(pinned_[i], from, bytes);
    BAMBA_CUDA(cudaMemcpyAsync(to, pinned_[i], bytes, cudaMemcpyHostToDevice, stream_));
    BAMBA_CUDA(cudaEventRecord(sent_[i], stream_));
  }

 private:
  cudaStream_t stream_ = nullptr;
  void* pinned_[2] = {};
  cudaEvent_t sent_[2] = {};
  int next_ = 0;
};

__device__ uint32_t Mix(uint32_t x) {  // Wellons' hash with the constants that he found by search ("lowbias32")
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  return x;
}

template <typename T>
__global__ void FillKernel(T* data, int64_t size, uint32_t seed, float scale, float middle) {
  WaitForPrevious();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += step) {
    const uint32_t bits = Mix(static_cast<uint32_t>(i) ^ Mix(seed ^ static_cast<uint32_t>(i >> 32)));
    data[i] = FromFloat<T>(fmaf(scale, static_cast<float>(static_cast<int32_t>(bits)), middle));
  }
}

__global__ void ReadKernel(const int4* data, int64_t size, int* out) {
  constexpr int kTogether = 8;
  int4 sum = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += kTogether * step) {
    int4 read[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; k++)
      read[k] = i + k * step < size ? __ldcs(data + i + k * step) : int4{};
#pragma unroll
    for (int k = 0; k < kTogether; k++) sum.x ^= read[k].x, sum.y ^= read[k].y, sum.z ^= read[k].z, sum.w ^= read[k].w;
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x5eed5eed) *out = 1;  // never, but the compiler can't know
}

}  // namespace

void State::UploadAll(std::span<const Transfer> transfers, const std::function<void(int64_t)>& progress) {
  struct Piece {
    char* to;
    const char* from;
    size_t bytes;
  };
  std::vector<Piece> pieces;
  for (const Transfer& t : transfers)
    for (size_t at = 0; at < t.bytes; at += kUploadPiece)
      pieces.push_back({static_cast<char*>(t.to) + at, static_cast<const char*>(t.from) + at, std::min(kUploadPiece, t.bytes - at)});
  Wait();  // for what else is done to that memory
  // More threads than it takes to fill the bus gain nothing, and for a small model their pinned memory takes longer than the copies.
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  const size_t most = std::min<size_t>({std::max(1u, std::thread::hardware_concurrency()), 12, bytes / (64 * kUploadPiece) + 1, pieces.size()});
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> done = 0;
  const auto work = [&](bool reports) {
    Lane lane(device_);
    for (size_t i; (i = next++) < pieces.size();) {
      lane.Send(pieces[i].to, pieces[i].from, pieces[i].bytes);
      const int64_t now = done += static_cast<int64_t>(pieces[i].bytes);
      if (reports && progress) progress(now);
    }
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < most; i++) others.emplace_back(work, false);
  if (bytes >= kLongUpload)
    others.emplace_back([this] {
      BAMBA_CUDA(cudaSetDevice(device_));
      OpenCublas();
    });
  if (most > 0) work(true);
  for (std::thread& other : others) other.join();
}

void State::FillRandom(const Tensor& tensor, uint64_t seed, float low, float high) {
  CHECK_MSG(tensor.contiguous(), "{}", tensor.ShapeString());
  WithWeight(tensor.dtype(), [&]<typename T>(T) {
    Launch(*this, FillKernel<T>, dim3(static_cast<unsigned>(sms_ * 8)), dim3(256), 0, static_cast<T*>(tensor.data()), tensor.size(),
           static_cast<uint32_t>(seed * 0x9e3779b97f4a7c15 >> 32), (high - low) * 0x1p-32f, (high + low) / 2);
  });
}

double State::ReadBandwidth() {
  const int64_t bytes = std::min<int64_t>(int64_t{4} << 30, FreeBytes() / 2 / 4096 * 4096);
  char* const data = static_cast<char*>(Allocate(static_cast<size_t>(bytes)));
  FillRandom(Tensor(data, Dtype::kF32, {bytes / 4}), 1, -1, 1);
  double best = 0;
  for (int blocks_per_sm : {4, 8, 16}) {
    const auto read = [&] {
      Launch(*this, ReadKernel, dim3(static_cast<unsigned>(sms_ * blocks_per_sm)), dim3(blocks_per_sm > 4 ? 256 : 512), 0, reinterpret_cast<const int4*>(data), bytes / 16,
             reinterpret_cast<int*>(scratch_));
    };
    read();
    for (int i = 0; i < 3; i++) best = std::max(best, 4 * static_cast<double>(bytes) / Seconds([&] { read(), read(), read(), read(); }));
  }
  Free(data);
  return best;
}

}  // namespace bamba::cuda
