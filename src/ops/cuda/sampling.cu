#include "ops/cuda/sampling.cuh"

#include <algorithm>

// The choice of tokens where the logits are.
namespace bamba::cuda {
namespace {

using namespace sampling;

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

// A block for each row.
__global__ void __launch_bounds__(kThreads) EditKernel(MatrixView<float> logits, int32_t vocab, const Choice* choices, LogitEdit* edits, float* unedited,
                                                       const int32_t* chosen) {
  LetNextBegin();
  WaitForPrevious();
  const Choice choice = choices[blockIdx.x];
  float* const x = logits.Row(blockIdx.x);
  const int32_t awaited = choice.awaited >= 0 ? max(0, chosen[choice.awaited]) : -1;
  edits += choice.first_edit, unedited += choice.first_edit;
  const auto edit = [&](int64_t i, const LogitEdit& how) {
    if (how.id < 0 || how.id >= vocab) return;
    const float before = unedited[i] = x[how.id], after = isfinite(before) ? Edited(before, how, choice) : before;
    x[how.id] = isfinite(before) && !isfinite(after) ? __uint_as_float(kNever) : after;
  };
  bool known = awaited < 0;
  for (int64_t i = threadIdx.x; i < choice.edits; i += kThreads) {
    LogitEdit how = edits[i];
    if (awaited >= 0 && how.id == awaited) how.output = max(how.output, 0) + 1, known = true;
    edit(i, how);
  }
  if (__syncthreads_or(known) || threadIdx.x > 0) return;
  const LogitEdit own = {awaited, 1, 0};
  edits[choice.edits - 1] = own;
  edit(choice.edits - 1, own);
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

// Choose, in passes over the logits: the best and the range; weights by buckets, for where top_k and top_p cut; what lies around the cut, sorted; weights of what
// is kept, and the draw. Engine's Sampler adds in double, in its own order; here sums have other orders, and so other roundings. Each of them is off by less
// than a margin that is known, so where a sum is further than that from the number that it is compared with, the sampler decides the same. Where one isn't,
// about once in fifty thousand draws from a whole vocabulary, the last kernel computes that row as the sampler does, one addition after the other.

template <int kCount>
__global__ void __launch_bounds__(kThreads) BestKernel(Rows rows) {
  __shared__ unsigned long long warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  const Choice& choice = rows.choices[row];
  for (unsigned b = blockIdx.x * kThreads + threadIdx.x; b < kBuckets; b += gridDim.x * kThreads) rows.sums[row * kBuckets + b] = 0, rows.counts[row * kBuckets + b] = 0;
  unsigned long long best = 0, worst = 0;  // the worst's rank with its bits inverted
  ForOwnChunks<kCount>(rows, row, [&](float x, uint32_t id, bool there) {
    const unsigned long long rank = RankOf(x, id);
    if (there) best = max(best, rank), worst = max(worst, rank > 0 ? ~rank : 0);
  });
  best = BlockMax(best, warps);
  __syncthreads();
  worst = BlockMax(worst, warps);
  unsigned long long* const found = rows.found + row * gridDim.x * 2;
  if (threadIdx.x == 0) found[blockIdx.x * 2] = best, found[blockIdx.x * 2 + 1] = worst;
  if (!LastOfRow(rows.counters)) return;
  best = worst = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) best = max(best, __ldcg(found + 2 * i)), worst = max(worst, __ldcg(found + 2 * i + 1));
  best = BlockMax(best, warps);
  __syncthreads();
  worst = BlockMax(worst, warps);
  if (threadIdx.x != 0) return;
  RowState state = {};
  if (best == kNotFinite || choice.temperature == 0) {
    rows.tokens[row] = best == kNotFinite ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
  } else {
    state.best = LogitOf(best), state.per_logit = 1 / choice.temperature;
    const float range = static_cast<float>(fmin(-kNegligible * choice.temperature, static_cast<double>(state.best) - LogitOf(~worst)));
    state.per_bucket = range > 1e-30f ? kBuckets / range : 0;
    state.status = choice.top_k > 0 || choice.top_p < 1 ? kSelects : kDraws;
  }
  rows.states[row] = state;
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) HistogramKernel(Rows rows) {
  __shared__ double sums[kBuckets];
  __shared__ int32_t counts[kBuckets];
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  const RowState state = rows.states[row];
  if (state.status != kSelects) return;
  const Choice choice = rows.choices[row];
  const int thread = static_cast<int>(threadIdx.x);
  for (int b = thread; b < kBuckets; b += kThreads) sums[b] = 0, counts[b] = 0;
  __syncthreads();
  ForOwnChunks<kCount>(rows, row, [&](float x, uint32_t, bool there) {
    const int32_t bucket = there && Counts(state, x) ? BucketOf(state, x) : -1;
    double weight = bucket >= 0 ? WeightOf(state, x) : 0;
    // Logits that are as good as equal would wait for each other.
    if (__all_sync(~0u, bucket == __shfl_sync(~0u, bucket, 0))) {
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) weight += __shfl_xor_sync(~0u, weight, lanes);
      if (bucket >= 0 && thread % 32 == 0) atomicAdd(sums + bucket, weight), atomicAdd(counts + bucket, 32);
    } else if (bucket >= 0) {
      atomicAdd(sums + bucket, weight), atomicAdd(counts + bucket, 1);
    }
  });
  __syncthreads();
  double* const all_sums = rows.sums + row * kBuckets;
  int32_t* const all_counts = rows.counts + row * kBuckets;
  for (int b = thread; b < kBuckets; b += kThreads)
    if (counts[b] > 0) atomicAdd(all_sums + b, sums[b]), atomicAdd(all_counts + b, counts[b]);
  if (!LastOfRow(rows.counters)) return;

  // The first bucket with which there are top_k tokens, or else top_p of the weights; a row has at least one token.
  double mine[kEach], sum = 0;
  for (int i = 0; i < kEach; i++) {
    const int b = thread * kEach + i;
    mine[i] = choice.top_k > 0 ? __ldcg(all_counts + b) : __ldcg(all_sums + b);
    sum += mine[i];
  }
  const double until = Prefix(sum, of_warps);
  __shared__ double total;
  __shared__ int32_t cut;
  if (thread == kThreads - 1) total = until, cut = kBuckets;
  __syncthreads();
  const double due = choice.top_k > 0 ? fmin(static_cast<double>(choice.top_k), total) : choice.top_p * total;
  RowState& to = rows.states[row];
  CutBuckets(mine, until - sum, due, cut, [&](int32_t bucket, double before) { to.bucket = bucket, to.before = before, to.total = total; });
  if (thread == 0 && cut == kBuckets) to.status = kDoubtful;
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) GatherKernel(Rows rows) {
  __shared__ unsigned long long list[kListed];
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  RowState& there = rows.states[row];
  const RowState state = there;
  if (state.status != kSelects) return;
  const Choice choice = rows.choices[row];
  const int thread = static_cast<int>(threadIdx.x);
  // With top_k all that comes before the cut is needed too.
  ListRanks<kCount>(rows, row, &there.listed, [&](float x, uint32_t) {
    const int32_t bucket = BucketOf(state, x);
    return Counts(state, x) && (choice.top_k > 0 ? bucket <= state.bucket : bucket == state.bucket);
  });
  if (!LastOfRow(rows.counters)) return;

  const int n = __ldcg(&there.listed);
  if (n == 0 || n > kListed) {
    if (thread == 0) there.status = kDoubtful;
    return;
  }
  const int sorted = SortRanks(rows.lists + row * kListed, n, list, [](unsigned long long a, unsigned long long b) { return a > b; });
  const int kept = choice.top_k > 0 ? static_cast<int>(min(choice.top_k, static_cast<int64_t>(n))) : n, each = sorted / kThreads;
  if (thread == 0) there.status = kDoubtful;
  __syncthreads();
  if (choice.top_p >= 1) {
    if (thread == 0) there.least = list[kept - 1], there.status = kDraws;
    return;
  }
  double sum = 0;
  for (int i = thread * each; i < min((thread + 1) * each, kept); i++) sum += WeightOf(state, LogitOf(list[i]));
  const double until = Prefix(sum, of_warps);
  __shared__ double total;
  if (thread == kThreads - 1) total = choice.top_k > 0 ? until : state.total;
  __syncthreads();
  const double due = choice.top_p * total, margin = Margin(rows) * total;
  CutRanks(state, list, thread * each, min((thread + 1) * each, kept), until - sum + (choice.top_k > 0 ? 0 : state.before), due, margin,
           [&](unsigned long long rank) { there.least = rank, there.status = kDraws; });
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) DrawKernel(Rows rows) {
  __shared__ double of_warps[kThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.y;
  RowState& there = rows.states[row];
  const RowState state = there;
  if (state.status != kDraws) return;
  const Choice choice = rows.choices[row];
  const int thread = static_cast<int>(threadIdx.x);
  const float* const logits = rows.logits.Row(row);
  double* const chunk_sums = rows.chunk_sums + row * rows.chunks();
  const float last = LogitOf(state.least);
  const double last_distance = state.least > 0 ? static_cast<double>(state.best) - last : -1;
  const float last_typical = LogitOf(state.last);
  bool doubts = false;
  for (int32_t chunk = static_cast<int32_t>(blockIdx.x); chunk < rows.chunks(); chunk += static_cast<int32_t>(gridDim.x)) {
    double sum = 0;
    ForChunk<kCount>(logits, rows.vocab, chunk, [&](float x, uint32_t id, bool inside) {
      if (!inside) return;
      // The sampler orders by what is left of the logits after the temperature: some that differ may be equal there.
      doubts |= x != last && fabs(static_cast<double>(state.best) - x - last_distance) <= 0x1p-40 * last_distance;
      const double weight = KeptWeight(state, 0, x, id);
      if (choice.min_p > 0 && weight > 0) doubts |= fabs(weight - choice.min_p) <= 0x1p-40 * choice.min_p;
      if (weight < choice.min_p || weight == 0) return;
      doubts |= state.last != 0 && x != last_typical && fabs(FarFromMean(state, x) - state.farthest) <= MeanMargin(rows);
      if (IsTypical(state, x, id)) sum += weight;
    });
    const double until = Prefix(sum, of_warps);
    if (thread == kThreads - 1) chunk_sums[chunk] = until;
  }
  if (doubts) atomicExch(&there.doubts, 1);
  if (!LastOfRow(rows.counters)) return;

  if (thread == 0) there.status = kDoubtful;
  if (__ldcg(&there.doubts)) return;
  const int32_t each = (rows.chunks() + kThreads - 1) / kThreads;
  double sum = 0;
  for (int32_t i = thread * each; i < min((thread + 1) * each, rows.chunks()); i++) sum += __ldcg(chunk_sums + i);
  double until = Prefix(sum, of_warps);
  __shared__ double total, before_chunk;
  __shared__ int32_t chosen;
  if (thread == kThreads - 1) total = until, chosen = -1;
  __syncthreads();
  const double target = choice.uniform * total, margin = Margin(rows) * total;
  until -= sum;
  for (int32_t i = thread * each; i < min((thread + 1) * each, rows.chunks()); i++) {
    const double before = until;
    until += __ldcg(chunk_sums + i);
    if (before <= target && until > target) chosen = i, before_chunk = before;  // should rounding let two think so, the margin tells
  }
  __syncthreads();
  if (chosen < 0) return;
  const int64_t first = static_cast<int64_t>(chosen) * kChunk + thread * kPerThread;
  double weights[kPerThread];
  sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    const auto id = static_cast<uint32_t>(first + i);
    weights[i] = id < rows.vocab && IsTypical(state, logits[id], id) ? KeptWeight(state, choice.min_p, logits[id], id) : 0;
    sum += weights[i];
  }
  until = before_chunk + Prefix(sum, of_warps) - sum;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    const double before = until;
    until += weights[i];
    if (before <= target - margin && until >= target + margin) rows.tokens[row] = static_cast<int32_t>(first + i), there.status = kDecided;
  }
}

}  // namespace

void State::Edit(const Tensor& logits, const int32_t* chosen) {
  CHECK_MSG(logits.rows() <= batch_.choices_count, "{} rows, {} choices", logits.rows(), batch_.choices_count);
  Launch(*this, EditKernel, static_cast<unsigned>(logits.rows()), kThreads, 0, ViewOf<float>(logits), static_cast<int32_t>(logits.cols()), batch_.choices,
         batch_.edits, batch_.unedited, chosen);
}

void State::Choose(const Tensor& logits, int32_t* tokens) {
  const int64_t vocab = logits.cols();
  CHECK_MSG(logits.rows() <= batch_.choices_count, "{} rows, {} choices", logits.rows(), batch_.choices_count);
  CHECK_MSG(logits.dtype() == Dtype::kF32 && vocab > 0 && vocab < (1 << 30), "logits {} {}", Name(logits.dtype()), logits.ShapeString());
  char* taken = scratch();
  const auto take = [&]<typename T>(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(taken);
    taken += DivideUp(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
  };
  int64_t sorted = 1;
  while (sorted < vocab) sorted *= 2;
  ExactSpace exact = {.weights = nullptr, .keys = nullptr, .ids = nullptr, .sorted = static_cast<int32_t>(sorted)};
  take(exact.weights, kExactBlocks * vocab), take(exact.keys, kExactBlocks * sorted), take(exact.ids, kExactBlocks * sorted);
  // Rows at a time: as many as the rest has room for.
  const int64_t chunks = DivideUp(vocab, kChunk);
  const int64_t of_row = static_cast<int64_t>(sizeof(RowState)) + (2 * chunks + kListed) * 8 + kBuckets * 12 + chunks * 8;
  const int64_t most = std::min<int64_t>({kCounters, 65535, (static_cast<int64_t>(kScratchBytes) - (taken - scratch()) - 4096) / of_row});
  CHECK_MSG(most > 0, "a vocabulary of {}", vocab);
  const bool wide = vocab % 4 == 0 && logits.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(logits.data()) % 16 == 0;
  char* const of_rows = taken;
  for (int64_t begin = 0; begin < logits.rows(); begin += most) {
    const int64_t count = std::min(most, logits.rows() - begin), blocks = std::clamp<int64_t>(DivideUp(4 * sms(), count), 1, chunks);
    Rows rows = {};
    rows.logits = {logits.as<float>() + begin * logits.stride(0), logits.stride(0)}, rows.vocab = static_cast<int32_t>(vocab);
    rows.choices = batch_.choices + begin, rows.tokens = tokens + begin, rows.counters = counters();
    taken = of_rows;
    take(rows.states, count), take(rows.found, count * blocks * 2), take(rows.sums, count * kBuckets), take(rows.counts, count * kBuckets);
    take(rows.lists, count * kListed), take(rows.chunk_sums, count * chunks);
    const auto pass = [&](void (*kernel)(Rows)) { Launch(*this, kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)), kThreads, 0, rows); };
    wide ? pass(BestKernel<4>) : pass(BestKernel<1>);
    wide ? pass(HistogramKernel<4>) : pass(HistogramKernel<1>);
    wide ? pass(GatherKernel<4>) : pass(GatherKernel<1>);
    if (batch_.typical) FindTypical(*this, rows, static_cast<int32_t>(blocks), static_cast<int32_t>(count), wide);
    wide ? pass(DrawKernel<4>) : pass(DrawKernel<1>);
    ChooseExactly(*this, rows, static_cast<int32_t>(count), exact);
  }
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
