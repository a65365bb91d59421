#include "ops/cuda/sampling.cuh"

// typical_p, in three passes over what top_k, top_p and min_p keep: the mean x, that is −entropy but for a constant; weights by buckets of how far x is from
// it, for where typical_p cuts; what lies around the cut, sorted.
namespace bamba::cuda::sampling {
namespace {

// Of a row that these kernels have nothing to do for.
__device__ __forceinline__ bool Skips(const RowState& state, const Choice& choice) { return state.status != kDraws || choice.typical_p >= 1; }
__device__ __forceinline__ RowState WithMean(RowState state) {
  state.mean = state.weighted / state.weight;
  return state;
}
__device__ __forceinline__ int32_t TypicalBucketOf(const RowState& state, float x) {
  return static_cast<int32_t>(fmin(FarFromMean(state, x) / state.per_logit * state.per_bucket, static_cast<double>(kBuckets - 1)));
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) MeanKernel(Rows rows) {
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  RowState& there = rows.states[row];
  const RowState state = there;
  const Choice& choice = rows.choices[row];
  const double min_p = choice.min_p;
  if (Skips(state, choice)) return;
  for (unsigned b = blockIdx.x * kThreads + threadIdx.x; b < kBuckets; b += gridDim.x * kThreads) rows.sums[row * kBuckets + b] = 0;
  double sum = 0, weighted = 0;
  ForOwnChunks<kCount>(rows, row, [&](float x, uint32_t id, bool inside) {
    const double weight = inside ? KeptWeight(state, min_p, x, id) : 0;
    if (weight > 0) sum += weight, weighted += weight * XOf(state, x);
  });
  sum = Prefix(sum, of_warps), weighted = Prefix(weighted, of_warps);
  if (threadIdx.x == kThreads - 1) atomicAdd(&there.weight, sum), atomicAdd(&there.weighted, weighted);
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) TypicalHistogramKernel(Rows rows) {
  __shared__ double sums[kBuckets];
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  const RowState state = WithMean(rows.states[row]);
  const Choice choice = rows.choices[row];
  if (Skips(state, choice)) return;
  const int thread = static_cast<int>(threadIdx.x);
  for (int b = thread; b < kBuckets; b += kThreads) sums[b] = 0;
  __syncthreads();
  ForOwnChunks<kCount>(rows, row, [&](float x, uint32_t id, bool inside) {
    const double weight = inside ? KeptWeight(state, choice.min_p, x, id) : 0;
    if (weight > 0) atomicAdd(sums + TypicalBucketOf(state, x), weight);
  });
  __syncthreads();
  double* const all = rows.sums + row * kBuckets;
  for (int b = thread; b < kBuckets; b += kThreads)
    if (sums[b] > 0) atomicAdd(all + b, sums[b]);
  if (!LastOfRow(rows.counters)) return;
  double mine[kEach], sum = 0;
  for (int i = 0; i < kEach; i++) mine[i] = __ldcg(all + thread * kEach + i), sum += mine[i];
  const double until = Prefix(sum, of_warps), due = choice.typical_p * state.weight;
  __shared__ int32_t cut;
  if (thread == 0) cut = kBuckets;
  __syncthreads();
  RowState& to = rows.states[row];
  CutBuckets(mine, until - sum, due, cut, [&](int32_t bucket, double before) { to.bucket = bucket, to.before = before, to.mean = state.mean; });
  if (thread == 0 && cut == kBuckets) to.status = kDoubtful;
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) TypicalGatherKernel(Rows rows) {
  __shared__ unsigned long long list[kListed];
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  RowState& there = rows.states[row];
  const RowState state = there;
  const Choice choice = rows.choices[row];
  if (Skips(state, choice)) return;
  const int thread = static_cast<int>(threadIdx.x);
  ListRanks<kCount>(rows, row, &there.listed_typical,
                    [&](float x, uint32_t id) { return KeptWeight(state, choice.min_p, x, id) > 0 && TypicalBucketOf(state, x) == state.bucket; });
  if (!LastOfRow(rows.counters)) return;
  const int n = __ldcg(&there.listed_typical);
  if (thread == 0) there.status = kDoubtful;
  __syncthreads();
  if (n == 0 || n > kListed) return;
  const int sorted = SortRanks(rows.lists + row * kListed, n, list, [&](unsigned long long a, unsigned long long b) {
    if (a == 0 || b == 0) return a != 0 && b == 0;
    const double far_a = FarFromMean(state, LogitOf(a)), far_b = FarFromMean(state, LogitOf(b));
    return far_a != far_b ? far_a < far_b : ~static_cast<uint32_t>(a) < ~static_cast<uint32_t>(b);
  });
  const int each = sorted / kThreads;
  double sum = 0;
  for (int i = thread * each; i < min((thread + 1) * each, n); i++) sum += WeightOf(state, LogitOf(list[i]));
  const double due = choice.typical_p * state.weight, margin = Margin(rows) * state.weight;
  CutRanks(state, list, thread * each, min((thread + 1) * each, n), state.before + Prefix(sum, of_warps) - sum, due, margin, [&](unsigned long long rank) {
    there.last = rank, there.farthest = FarFromMean(state, LogitOf(rank)), there.status = kDraws;
  });
}

}  // namespace

void FindTypical(State& state, const Rows& rows, int32_t blocks, int32_t count, bool wide) {
  const auto pass = [&](void (*kernel)(Rows)) { Launch(state, kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)), kThreads, 0, rows); };
  wide ? pass(MeanKernel<4>) : pass(MeanKernel<1>);
  wide ? pass(TypicalHistogramKernel<4>) : pass(TypicalHistogramKernel<1>);
  wide ? pass(TypicalGatherKernel<4>) : pass(TypicalGatherKernel<1>);
}

}  // namespace bamba::cuda::sampling
