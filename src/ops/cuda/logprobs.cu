#include "base/portable_math.h"
#include "ops/cuda/sampling.cuh"

// Log probabilities of chosen tokens and the likeliest ones: a block for each row. Sums are in engine/logprobs.cc's order, sixteen of them side by side.
namespace bamba::cuda {
namespace {

using sampling::kNotFinite, sampling::RankOf;

constexpr int kThreads = 1024;

__device__ __forceinline__ unsigned long long MaxOfBlock(unsigned long long best) {
  __shared__ unsigned long long warps[kThreads / 32];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) best = max(best, __shfl_xor_sync(~0u, best, lanes));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < kThreads / 32; i++) best = max(best, warps[i]);
  return best;
}

__global__ void __launch_bounds__(kThreads) LogprobsKernel(MatrixView<float> logits, int32_t vocab, const Choice* choices, const LogitEdit* edits,
                                                           const float* unedited, const int32_t* tokens, LogprobParts* all_parts) {
  constexpr int kSums = 16, kPiece = 4 * kThreads;
  __shared__ double piece[kPiece], sums[kSums];
  LetNextBegin();
  WaitForPrevious();
  const Choice& choice = choices[blockIdx.x];
  const int32_t token = tokens[blockIdx.x], thread = static_cast<int32_t>(threadIdx.x);
  if (choice.top_logprobs < 0 || token < 0) return;
  float* const x = logits.Row(blockIdx.x);
  LogprobParts& parts = all_parts[blockIdx.x];
  for (int64_t i = thread; i < choice.edits; i += kThreads) {
    const int32_t id = edits[choice.first_edit + i].id;
    if (id >= 0 && id < vocab) x[id] = unedited[choice.first_edit + i];
  }
  __syncthreads();

  // The likeliest, one after the other.
  float best = 0;
  unsigned long long above = kNotFinite;
  for (int64_t i = 0; i < max(int64_t{1}, min(choice.top_logprobs, static_cast<int64_t>(vocab))); i++) {
    unsigned long long next = 0;
    for (int32_t id = thread; id < vocab; id += kThreads) {
      const unsigned long long rank = RankOf(x[id], static_cast<uint32_t>(id));
      if (rank < above) next = max(next, rank);
    }
    above = MaxOfBlock(next);
    const auto id = static_cast<int32_t>(~static_cast<uint32_t>(above));
    if (i == 0) best = x[id];
    if (thread == 0) parts.ids[i] = id, parts.logits[i] = x[id];
  }

  double sum = 0;
  for (int32_t begin = 0; begin < vocab; begin += kPiece) {
    const int32_t n = min(kPiece, vocab - begin);
    for (int32_t i = thread; i < n; i += kThreads) piece[i] = Exp(static_cast<double>(x[begin + i]) - best);
    __syncthreads();
    if (thread < kSums)
      for (int32_t i = thread; i < n; i += kSums) sum += piece[i];
    __syncthreads();
  }
  if (thread < kSums) sums[thread] = sum;
  __syncthreads();
  if (thread > 0) return;
  sum = 0;
  for (const double of_lane : sums) sum += of_lane;
  parts.sum = sum, parts.best = best, parts.chosen = x[token];
}

}  // namespace

void State::Logprobs(const Tensor& logits, const int32_t* tokens, LogprobParts* parts) {
  CHECK_MSG(logits.rows() <= batch_.choices_count, "{} rows, {} choices", logits.rows(), batch_.choices_count);
  Launch(*this, LogprobsKernel, static_cast<unsigned>(logits.rows()), kThreads, 0, ViewOf<float>(logits), static_cast<int32_t>(logits.cols()), batch_.choices,
         batch_.edits, batch_.unedited, tokens, parts);
}

}  // namespace bamba::cuda
