#pragma once

#include "ops/cuda/state.cuh"

// The choice of tokens where the logits are: what its kernels share.
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

// What ExactKernel works with, for each of its blocks.
struct ExactSpace {
  double* weights;           // [vocab] 0: not kept
  unsigned long long* keys;  // [sorted] how far a token is below the best, as bits
  uint32_t* ids;             // [sorted]
  int32_t sorted;            // the power of two that holds the vocabulary
};
constexpr int64_t kExactBlocks = 16;

// Chooses the tokens of rows that are in doubt.
void ChooseExactly(State& state, const Rows& rows, int32_t count, const ExactSpace& space);

}  // namespace bamba::cuda::sampling
