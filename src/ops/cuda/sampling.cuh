#pragma once

#include "ops/cuda/state.cuh"

// The choice of tokens where the logits are (sampling.cu; sampling_typical.cu, sampling_exact.cu): what its kernels share.
namespace bamba::cuda::sampling {

// A logit and its id as a number that orders them: a larger logit is above, of equal ones (−0 is 0) the lower id. What isn't finite is above all.
constexpr unsigned long long kNotFinite = ~0ull;
// Except for this one, which is below all: no arithmetic of a GPU gives such a NaN, and no token that it stands for counts in any comparison.
constexpr uint32_t kNever = 0x7fc0dead;
__device__ __forceinline__ unsigned long long RankOf(float x, uint32_t id) {
  if (__float_as_uint(x) == kNever) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  const uint32_t ordered = bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
  return (bits & 0x7f800000u) == 0x7f800000u ? kNotFinite : static_cast<unsigned long long>(ordered) << 32 | (~id);
}

constexpr int kThreads = 256, kPerThread = 16, kChunk = kPerThread * kThreads;  // logits of a block at a time
constexpr int kBuckets = 2048;
constexpr int kListed = 4096;  // ranks that a block can sort
constexpr double kNegligible = -42;  // the sampler's

enum Status : int32_t { kDecided, kSelects, kDraws, kDoubtful };

// A row on its way through the kernels.
struct RowState {
  double per_logit;  // 1 / temperature
  double total, before;  // of all weights; of those in buckets before `bucket`
  unsigned long long least;  // the rank of the last token that top_k and top_p keep
  double weight, weighted;   // what top_k, top_p and min_p keep: Σ weights, Σ weights · x, x a logit's distance from the best after the temperature, below 0
  double mean, farthest;     // typical_p keeps those whose x is at most `farthest` from the mean,
  unsigned long long last;   // of equally far ones those up to this rank's id; 0 where it keeps all
  float best, per_bucket;
  int32_t bucket, listed, listed_typical;  // where the cut is; how many ranks there are for GatherKernel and TypicalGatherKernel to sort
  int32_t doubts;
  Status status;
};

struct Rows {
  MatrixView<const float> logits;
  int32_t vocab;
  const Choice* choices;
  int32_t* tokens;
  RowState* states;
  unsigned long long* found;  // [rows, blocks, 2]
  double* sums;               // [rows, kBuckets]
  int32_t* counts;            // [rows, kBuckets]
  unsigned long long* lists;  // [rows, kListed]
  double* chunk_sums;         // [rows, chunks]
  int32_t* counters;          // [rows]
  __host__ __device__ int32_t chunks() const { return static_cast<int32_t>((vocab + int64_t{kChunk} - 1) / kChunk); }
};

__device__ __forceinline__ float LogitOf(unsigned long long rank) {
  const auto ordered = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

// By how much two sums may differ that these kernels and the sampler make, of their total: roundings, one for each number in the sampler's total, in what it takes off
// or adds up after it, and in sums by buckets here, and by what tokens count for (2^-46 of it, or e^-42 at the border of what counts).
__device__ __forceinline__ double Margin(const Rows& rows) { return 5 * rows.vocab * 0x1p-53 + 0x1p-42; }

// Calls f(logit, id, whether there is one) for a chunk's logits, all lanes of a warp together.
template <int kCount, typename F>
__device__ __forceinline__ void ForChunk(const float* x, int32_t vocab, int32_t chunk, const F& f) {
  struct alignas(4 * kCount) Unit {
    float at[kCount];
  };
  constexpr int kUnits = kPerThread / kCount;
  Unit units[kUnits] = {};
  const int64_t first = static_cast<int64_t>(chunk) * kChunk + static_cast<int64_t>(threadIdx.x) * kCount;
#pragma unroll
  for (int u = 0; u < kUnits; u++)
    if (first + u * kThreads * kCount < vocab) units[u] = *reinterpret_cast<const Unit*>(x + first + u * kThreads * kCount);
#pragma unroll
  for (int u = 0; u < kUnits; u++)
#pragma unroll
    for (int i = 0; i < kCount; i++)
      f(units[u].at[i], static_cast<uint32_t>(first + u * kThreads * kCount + i), first + u * kThreads * kCount < vocab);
}

// The same for all chunks of a row that are this block's.
template <int kCount, typename F>
__device__ __forceinline__ void ForOwnChunks(const Rows& rows, int64_t row, const F& f) {
  for (int32_t chunk = static_cast<int32_t>(blockIdx.x); chunk < rows.chunks(); chunk += static_cast<int32_t>(gridDim.x))
    ForChunk<kCount>(rows.logits.Row(row), rows.vocab, chunk, f);
}

// Whether this block is the row's last one to come here. It then sees what the others wrote, through __ldcg.
__device__ __forceinline__ bool LastOfRow(int32_t* counters) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counters + blockIdx.y, 1) == static_cast<int32_t>(gridDim.x) - 1;
    if (last) counters[blockIdx.y] = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Sums of the threads up to this one, it included. `warps` may be used again at once.
__device__ __forceinline__ double Prefix(double sum, double (&warps)[kThreads / 32]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double before = __shfl_up_sync(~0u, sum, distance);
    if (lane >= distance) sum += before;
  }
  __syncthreads();
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  double before = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) before += i < warp ? warps[i] : 0;
  return before + sum;
}

// A logit after the temperature, less the best one's.
__device__ __forceinline__ double XOf(const RowState& state, float x) { return (static_cast<double>(x) - state.best) * state.per_logit; }
// Whether the sampler looks at a token at all; where it is a matter of rounding, its weight is far below the margin.
__device__ __forceinline__ bool Counts(const RowState& state, float x) { return XOf(state, x) >= kNegligible; }
__device__ __forceinline__ double WeightOf(const RowState& state, float x) { return exp(XOf(state, x)); }
// Falls nowhere where the logit rises.
__device__ __forceinline__ int32_t BucketOf(const RowState& state, float x) {
  return static_cast<int32_t>(fminf((state.best - x) * state.per_bucket, static_cast<float>(kBuckets - 1)));
}

__device__ __forceinline__ double KeptWeight(const RowState& state, double min_p, float x, uint32_t id) {
  if (RankOf(x, id) < state.least || !Counts(state, x)) return 0;
  const double weight = WeightOf(state, x);
  return weight >= min_p ? weight : 0;
}

__device__ __forceinline__ double FarFromMean(const RowState& state, float x) {
  return fabs(XOf(state, x) - state.mean);
}
// The mean of the sampler's sums may be off from this one by so much: a sum's margin, relative to x of up to 42.
__device__ __forceinline__ double MeanMargin(const Rows& rows) { return 64 * Margin(rows); }
__device__ __forceinline__ bool IsTypical(const RowState& state, float x, uint32_t id) {
  if (state.last == 0) return true;
  const double far = FarFromMean(state, x);
  return far < state.farthest || (far == state.farthest && id <= ~static_cast<uint32_t>(state.last));
}

// Of sums by buckets, of which a thread has kEach one after the other and `before` is what lies before them: the first bucket with which the sum reaches `due`.
// `cut`, shared, is kBuckets, where it stays if there is none; found(bucket, what lies before it) is called by the thread that has it.
constexpr int kEach = kBuckets / kThreads;
template <typename F>
__device__ __forceinline__ void CutBuckets(const double (&mine)[kEach], const double before_mine, double due, int32_t& cut, const F& found) {
  const int first = static_cast<int>(threadIdx.x) * kEach;
  double before = before_mine;
  for (int i = 0; i < kEach; before += mine[i++])
    if (before < due && before + mine[i] >= due) atomicMin(&cut, first + i);
  __syncthreads();
  before = before_mine;
  for (int i = 0; i < kEach; before += mine[i++])
    if (cut == first + i) found(cut, before);
}

// Of ranks [begin, end) of a sorted list, `sum` being the weights before them: found(rank) of the one with which the sum reaches `due`, where the sampler's
// sums must say so, too.
template <typename F>
__device__ __forceinline__ void CutRanks(const RowState& state, const unsigned long long* list, int begin, int end, double sum, double due, double margin,
                                         const F& found) {
  for (int i = begin; i < end; i++) {
    const double before = sum;
    sum += WeightOf(state, LogitOf(list[i]));
    if (before <= due - margin && sum >= due + margin) found(list[i]);
  }
}

// Lists the ranks of a row's tokens for which `listed` holds, as many as there is room for; `count` counts all. Called by a row's blocks together.
template <int kCount, typename F>
__device__ __forceinline__ void ListRanks(const Rows& rows, int64_t row, int32_t* count, const F& listed) {
  unsigned long long* const all = rows.lists + row * kListed;
  const int thread = static_cast<int>(threadIdx.x);
  ForOwnChunks<kCount>(rows, row, [&](float x, uint32_t id, bool inside) {
    const bool here = inside && listed(x, id);
    const unsigned warp = __ballot_sync(~0u, here);
    if (warp == 0) return;
    int at = 0;
    if (thread % 32 == 0) at = atomicAdd(count, __popc(warp));
    at = __shfl_sync(~0u, at, 0) + __popc(warp & ((1u << thread % 32) - 1));
    if (here && at < kListed) all[at] = RankOf(x, id);
  });
}

// The block's `list` becomes the n ranks of `all` with the first one by `before` in front, and then ranks of 0, which must be last. Gives how many there are
// now, a multiple of the threads. Bitonic.
template <typename F>
__device__ __forceinline__ int SortRanks(const unsigned long long* all, int n, unsigned long long* list, const F& before) {
  int sorted = kThreads;
  while (sorted < n) sorted *= 2;
  for (int i = static_cast<int>(threadIdx.x); i < sorted; i += kThreads) list[i] = i < n ? __ldcg(all + i) : 0;
  __syncthreads();
  for (int size = 2; size <= sorted; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < sorted; i += kThreads) {
        const int other = i ^ step;
        if (other < i) continue;
        const unsigned long long a = list[i], b = list[other];
        if (((i & size) == 0) == before(b, a)) list[i] = b, list[other] = a;
      }
      __syncthreads();
    }
  return sorted;
}

// What ExactKernel works with, for each of its blocks.
struct ExactSpace {
  double* weights;           // [vocab] 0: not kept
  unsigned long long* keys;  // [sorted] how far a token is below the best, as bits
  uint32_t* ids;             // [sorted]
  int32_t sorted;            // the power of two that holds the vocabulary
};
constexpr int64_t kExactBlocks = 16;

// Finds out what typical_p keeps, of rows that ask for it. `wide`: logits can be read by fours.
void FindTypical(State& state, const Rows& rows, int32_t blocks, int32_t count, bool wide);

// Chooses the tokens of rows that are in doubt.
void ChooseExactly(State& state, const Rows& rows, int32_t count, const ExactSpace& space);

}  // namespace bamba::cuda::sampling
