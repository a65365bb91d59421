#include <algorithm>

#include "ops/cuda/state.cuh"

// The choice of tokens where the logits are.
namespace bamba::cuda {
namespace {

constexpr int kThreads = 256;

// A logit and its id as a number that orders them: a larger logit is above, of equal ones (−0 is 0) the lower id. What isn't finite is above all.
constexpr unsigned long long kNotFinite = ~0ull;
__device__ __forceinline__ unsigned long long RankOf(float x, uint32_t id) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  const uint32_t ordered = bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
  return (bits & 0x7f800000u) == 0x7f800000u ? kNotFinite : static_cast<unsigned long long>(ordered) << 32 | (~id);
}

__device__ __forceinline__ unsigned long long BlockMax(unsigned long long best, unsigned long long* warps) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) best = max(best, __shfl_xor_sync(~0u, best, lanes));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  best = warps[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; i++) best = max(best, warps[i]);
  return best;
}

// Blocks in x share a row, a thread takes kUnits of 1 or 4 logits; the last block to come combines what they found, which depends on no order.
template <int kCount, int kUnits>
__global__ void __launch_bounds__(kThreads) ArgMaxKernel(MatrixView<const float> logits, int32_t vocab, int32_t* tokens, unsigned long long* found, int32_t* counters) {
  __shared__ unsigned long long warps[kThreads / 32];
  __shared__ bool last;
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  const float* const x = logits.Row(row);
  struct alignas(4 * kCount) Unit {
    float at[kCount];
  };
  Unit units[kUnits];
  const int32_t first = (static_cast<int32_t>(blockIdx.x) * kUnits * kThreads + static_cast<int32_t>(threadIdx.x)) * kCount;
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    const int32_t id = first + u * kThreads * kCount;
    if (id < vocab) units[u] = *reinterpret_cast<const Unit*>(x + id);
  }
  unsigned long long best = 0;
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    const int32_t id = first + u * kThreads * kCount;
    if (id >= vocab) continue;
#pragma unroll
    for (int i = 0; i < kCount; i++) best = max(best, RankOf(units[u].at[i], static_cast<uint32_t>(id + i)));
  }
  best = BlockMax(best, warps);
  if (gridDim.x > 1) {
    unsigned long long* const of_row = found + row * gridDim.x;
    if (threadIdx.x == 0) {
      of_row[blockIdx.x] = best;
      __threadfence();
      last = atomicAdd(counters + row, 1) == static_cast<int32_t>(gridDim.x) - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    best = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) best = max(best, __ldcg(of_row + i));
    best = BlockMax(best, warps);
    if (threadIdx.x == 0) counters[row] = 0;
  }
  if (threadIdx.x == 0) tokens[row] = best == kNotFinite ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
}

constexpr int kTopThreads = 1024, kNear = 4096;  // candidates that shared memory has room for
static_assert(kTopThreads >= Accelerator::kMostTop);

// A block takes a row. The k-th largest of the threads' own largest logits is a lower bound of the k-th largest of all, and few logits lie above it: among those
// the k-th rank is found bit by bit. `far` [rows, vocab]: candidates beyond kNear.
__global__ void __launch_bounds__(kTopThreads) TopKernel(MatrixView<const float> logits, int32_t vocab, int k, int32_t* ids, float* values, unsigned long long* far) {
  __shared__ unsigned long long near[kNear], top[kTopThreads];
  __shared__ int found, kept;
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const float* const x = logits.Row(row);
  unsigned long long* const beyond = far + row * vocab;
  ids += row * k, values += row * k;
  if (thread == 0) found = kept = 0;

  constexpr int kTogether = 8;
  unsigned long long mine = 0;
  for (int32_t begin = thread; begin < vocab; begin += kTogether * kTopThreads) {
    float read[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (begin + i * kTopThreads < vocab) read[i] = x[begin + i * kTopThreads];
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (begin + i * kTopThreads < vocab) mine = max(mine, RankOf(read[i], static_cast<uint32_t>(begin + i * kTopThreads)));
  }
  if (__syncthreads_or(mine == kNotFinite)) {
    if (thread < k) ids[thread] = -1, values[thread] = NAN;
    return;
  }
  unsigned long long bound = 0;
  for (int bit = 63; bit >= 32; bit--) {
    const unsigned long long higher = bound | 1ull << bit;
    if (__syncthreads_count(mine >= higher) >= k) bound = higher;
  }
  for (int32_t begin = thread; begin < vocab; begin += kTogether * kTopThreads) {
    float read[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (begin + i * kTopThreads < vocab) read[i] = x[begin + i * kTopThreads];
#pragma unroll
    for (int i = 0; i < kTogether; i++) {
      const int32_t id = begin + i * kTopThreads;
      if (id >= vocab) continue;
      const unsigned long long rank = RankOf(read[i], static_cast<uint32_t>(id));
      if (rank < bound) continue;
      const int at = atomicAdd(&found, 1);
      (at < kNear ? near[at] : beyond[at - kNear]) = rank;
    }
  }
  __syncthreads();
  const int candidates = found;
  const auto candidate = [&](int i) { return i >= candidates ? 0 : i < kNear ? near[i] : beyond[i - kNear]; };
  unsigned long long least = 0;  // the k-th largest: ranks differ
  for (int bit = 63; bit >= 0; bit--) {
    const unsigned long long higher = least | 1ull << bit;
    int above = 0;
    for (int i = 0; i < candidates; i += kTopThreads) above += __syncthreads_count(candidate(i + thread) >= higher);
    if (above >= k) least = higher;
  }
  top[thread] = 0;
  __syncthreads();
  for (int i = thread; i < candidates; i += kTopThreads)
    if (candidate(i) >= least) top[atomicAdd(&kept, 1)] = candidate(i);
  __syncthreads();
  // Bitonic sort, the largest first, of the least power of two that holds k.
  int sorted = 1;
  while (sorted < k) sorted *= 2;
  for (int size = 2; size <= sorted; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      const int other = thread ^ step;
      if (thread < sorted && other > thread) {
        const unsigned long long a = top[thread], b = top[other];
        if (((thread & size) == 0) == (a < b)) top[thread] = b, top[other] = a;
      }
      __syncthreads();
    }
  if (thread < k) {
    const auto id = static_cast<int32_t>(~static_cast<uint32_t>(top[thread]));
    ids[thread] = id, values[thread] = x[id];
  }
}

}  // namespace

void State::Top(const Tensor& logits, int64_t k, int32_t* ids, float* values) {
  const int64_t vocab = logits.cols();
  CHECK_MSG(logits.dtype() == Dtype::kF32 && vocab < (1 << 30) && k > 0 && k <= std::min(vocab, kMostTop), "the {} largest of logits {} {}", k, Name(logits.dtype()),
            logits.ShapeString());
  const int64_t most = static_cast<int64_t>(kScratchBytes) / 8 / vocab;
  for (int64_t begin = 0; begin < logits.rows(); begin += most)
    Launch(*this, TopKernel, static_cast<unsigned>(std::min(most, logits.rows() - begin)), kTopThreads, 0,
           MatrixView<const float>{logits.as<float>() + begin * logits.stride(0), logits.stride(0)}, static_cast<int32_t>(vocab), static_cast<int>(k), ids + begin * k,
           values + begin * k, reinterpret_cast<unsigned long long*>(scratch()));
}

void State::ArgMax(const Tensor& logits, int32_t* tokens) {
  const int64_t vocab = logits.cols();
  CHECK_MSG(logits.dtype() == Dtype::kF32 && vocab > 0 && vocab < (1 << 30), "logits {} {}", Name(logits.dtype()), logits.ShapeString());
  const auto run = [&](auto count, auto of_thread) {
    constexpr int kCount = decltype(count)::value, kUnits = decltype(of_thread)::value;
    const int64_t blocks = DivideUp(vocab, kThreads * kUnits * kCount);
    const int64_t most = std::min<int64_t>({kCounters, 65535, static_cast<int64_t>(kScratchBytes) / 8 / blocks});
    for (int64_t begin = 0; begin < logits.rows(); begin += most) {
      const int64_t rows = std::min(most, logits.rows() - begin);
      Launch(*this, ArgMaxKernel<kCount, kUnits>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)), kThreads, 0,
             MatrixView<const float>{logits.as<float>() + begin * logits.stride(0), logits.stride(0)}, static_cast<int32_t>(vocab), tokens + begin,
             reinterpret_cast<unsigned long long*>(scratch()), counters());
    }
  };
  const bool wide = vocab % 4 == 0 && logits.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(logits.data()) % 16 == 0;
  using One = std::integral_constant<int, 1>;
  using Four = std::integral_constant<int, 4>;
  // Few rows are spread over many blocks; with many rows a thread has as much on its way as it can.
  if (!wide) run(One(), std::integral_constant<int, 2>());
  else logits.rows() <= 32 ? run(Four(), std::integral_constant<int, 2>()) : run(Four(), std::integral_constant<int, 8>());
}

}  // namespace bamba::cuda
