#include "base/portable_math.h"
#include "ops/cuda/sampling.cuh"

// Rows that are in doubt, as the sampler does it (engine/sampler.cc), each sum in its order.
namespace bamba::cuda::sampling {
namespace {

// A row that ExactKernel is at.
struct ExactRow {
  const float* logits;
  double best;
  Choice choice;
  double* weights;
  unsigned long long* keys;
  uint32_t* ids;
  int32_t vocab, sorted;
  // How far a token's x is from the best one's, 0; for typical_p from the mean.
  bool typical;
  double mean;
  __device__ double X(int64_t i) const { return (static_cast<double>(logits[i]) - best) / choice.temperature; }
  __device__ double Distance(int64_t i) const { return typical ? fabs(X(i) - mean) : -X(i); }
  __device__ double SortedDistance(int32_t i) const { return __longlong_as_double(static_cast<long long>(keys[i])); }
};
constexpr unsigned long long kNone = ~0ull;  // a key

// Calls f(weight, id) for one token after the other, in one thread.
template <typename F>
__device__ void OneByOne(const ExactRow& row, const F& f) {
  constexpr int kPiece = 4 * kThreads;
  __shared__ double piece[kPiece];
  for (int32_t begin = 0; begin < row.vocab; begin += kPiece) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kPiece && begin + i < row.vocab; i += kThreads) piece[i] = row.weights[begin + i];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int i = 0; i < kPiece && begin + i < row.vocab; i++) f(piece[i], begin + i);
  }
  __syncthreads();
}

// The tokens that have a weight in the sampler's order: by distance, equal ones by id. Gives their number.
__device__ int32_t SortExactly(const ExactRow& row) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t i = thread; i < row.sorted; i += kThreads) {
    const bool there = i < row.vocab && row.weights[i] > 0;
    row.keys[i] = there ? static_cast<unsigned long long>(__double_as_longlong(row.Distance(i) + 0.0)) : kNone, row.ids[i] = static_cast<uint32_t>(i);
  }
  __syncthreads();
  for (int32_t size = 2; size <= row.sorted; size *= 2)
    for (int32_t step = size / 2; step > 0; step /= 2) {
      for (int32_t i = thread; i < row.sorted; i += kThreads) {
        const int32_t other = i ^ step;
        if (other < i) continue;
        const unsigned long long a = row.keys[i], b = row.keys[other];
        const uint32_t id_a = row.ids[i], id_b = row.ids[other];
        if (((i & size) == 0) != (a != b ? a < b : id_a < id_b)) row.keys[i] = b, row.ids[i] = id_b, row.keys[other] = a, row.ids[other] = id_a;
      }
      __syncthreads();
    }
  __shared__ int32_t count;
  if (thread == 0) count = row.vocab;
  __syncthreads();
  for (int32_t i = thread; i < row.vocab; i += kThreads)
    if (row.keys[i] == kNone) atomicMin(&count, i);
  __syncthreads();
  return count;
}

__device__ void KeepFirst(const ExactRow& row, int32_t n) {
  for (int32_t i = n + static_cast<int32_t>(threadIdx.x); i < row.sorted && row.keys[i] != kNone; i += kThreads) row.weights[row.ids[i]] = 0;
  __syncthreads();
}

// How many of the first `kept` tokens, which are all, it takes for their weights to sum up to a part `p` of all.
__device__ int32_t CutExactly(const ExactRow& row, int32_t kept, double p) {
  __shared__ double sums[kBuckets], total;
  __shared__ int32_t cut;
  for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads) sums[b] = 0;
  if (threadIdx.x == 0) total = 0;
  OneByOne(row, [&](double weight, int32_t) { total += weight; });
  const double due = p * total, largest = row.SortedDistance(kept - 1), scale = largest > 1e-300 ? (kBuckets - 1) / largest : 0;
  const auto bucket = [&](double distance) { return static_cast<int32_t>(distance * scale); };
  OneByOne(row, [&](double weight, int32_t i) {
    if (weight > 0) sums[bucket(row.Distance(i))] += weight;
  });
  if (threadIdx.x == 0) {
    double sum = 0;
    int last = 0;
    while (last < kBuckets && (sums[last] == 0 || sum + sums[last] < due)) sum += sums[last++];
    cut = kept;
    if (last < kBuckets) {
      int32_t i = 0;
      while (bucket(row.SortedDistance(i)) < last) i++;
      while (i + 1 < kept && bucket(row.SortedDistance(i + 1)) == last && (sum += row.weights[row.ids[i]]) < due) i++;
      cut = i + 1;
    }
  }
  __syncthreads();
  return cut;
}

__global__ void __launch_bounds__(kThreads) ExactKernel(Rows rows, int32_t count, ExactSpace space) {
  __shared__ double total;
  LetNextBegin();
  WaitForPrevious();
  const int32_t thread = static_cast<int32_t>(threadIdx.x), block = static_cast<int32_t>(blockIdx.x), vocab = rows.vocab;
  for (int32_t r = block; r < count; r += static_cast<int32_t>(gridDim.x)) {
    if (rows.states[r].status != kDoubtful) continue;
    ExactRow row = {.logits = rows.logits.Row(r),
                    .best = rows.states[r].best,
                    .choice = rows.choices[r],
                    .weights = space.weights + static_cast<int64_t>(block) * vocab,
                    .keys = space.keys + static_cast<int64_t>(block) * space.sorted,
                    .ids = space.ids + static_cast<int64_t>(block) * space.sorted,
                    .vocab = vocab,
                    .sorted = space.sorted,
                    .typical = false,
                    .mean = 0};
    const Choice& choice = row.choice;
    for (int32_t i = thread; i < vocab; i += kThreads) {
      const double distance = row.Distance(i);
      row.weights[i] = -distance >= kNegligible ? Exp(-distance) : 0;
    }
    __syncthreads();
    if (choice.top_k > 0 || choice.top_p < 1) {
      int32_t kept = SortExactly(row);
      if (choice.top_k > 0 && choice.top_k < kept) KeepFirst(row, kept = static_cast<int32_t>(choice.top_k));
      if (choice.top_p < 1) KeepFirst(row, CutExactly(row, kept, choice.top_p));
    }
    if (choice.min_p > 0)
      for (int32_t i = thread; i < vocab; i += kThreads)
        if (row.weights[i] < choice.min_p) row.weights[i] = 0;
    if (choice.typical_p < 1) {
      __shared__ double mean;
      if (thread == 0) total = mean = 0;
      OneByOne(row, [&](double weight, int32_t i) {
        if (weight > 0) total += weight, mean += weight * row.X(i);  // a token that is never chosen has no x
      });
      row.typical = true, row.mean = mean / total;
      const int32_t kept = SortExactly(row);
      KeepFirst(row, CutExactly(row, kept, choice.typical_p));
    }
    if (thread == 0) total = 0;
    OneByOne(row, [&](double weight, int32_t) { total += weight; });
    double left = choice.uniform * total;
    int32_t chosen = -1;
    OneByOne(row, [&](double weight, int32_t i) {
      if (weight == 0 || (chosen >= 0 && left < 0)) return;
      left -= weight, chosen = i;
    });
    if (thread == 0) rows.tokens[r] = chosen;
  }
}

}  // namespace

void ChooseExactly(State& state, const Rows& rows, int32_t count, const ExactSpace& space) {
  Launch(state, ExactKernel, static_cast<unsigned>(std::min<int64_t>(kExactBlocks, count)), kThreads, 0, rows, count, space);
}

}  // namespace bamba::cuda::sampling
