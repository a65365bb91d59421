#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "base/tensor.h"

namespace bamba {

// Tokens in a chunk of the state space scan, counted from each sequence's first token. The SSM state exists at chunk boundaries only; within a chunk a
// row is computed from the boundary state and the chunk's inputs, in one order, however the sequence is split over calls. See docs/numerics.md.
inline constexpr int64_t kSsdChunk = 32;

// Keys in a block of attention, at absolute positions: the unit of its softmax and of a page of the KV pool.
inline constexpr int64_t kKvBlock = 64;

// A run of rows of a batch that are consecutive tokens of one sequence.
struct Sequence {
  int64_t row = 0;                 // its first row in the batch
  int64_t rows = 0;                // may be 0
  int64_t position = 0;            // tokens of the sequence before `row`; 0 starts from the empty state whatever the slot holds
  int32_t slot = -1;               // state slot, read and advanced; -1: starts and ends stateless (then position is 0)
  const int32_t* pages = nullptr;  // page table: page pages[i] of the KV pool holds keys [i·kKvBlock, (i+1)·kKvBlock); null where slot is -1
};

// How the token after a row is chosen, where a GPU does it: engine/sampler.h's steps of these names. `uniform`, from [0, 1), decides.
struct Choice {
  double temperature = 0;  // 0: the largest logit; else from 1e-30 to 1e30
  double top_p = 1, min_p = 0, typical_p = 1, uniform = 0;
  int64_t top_k = 0;  // at most kMostTopK
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int64_t first_edit = 0, edits = 0;  // of the batch's edits: those of this row, of each id at most one
  // Not −1: the token that row `awaited` of the batch before chose is in the output once more than the edits say. The last of them, of id −1, is then a place
  // for its own, should there be none.
  int64_t awaited = -1;
  int64_t top_logprobs = -1;  // not −1: Logprobs tells of the row, and of its so many likeliest tokens; at most kMostTopLogprobs
};
inline constexpr int64_t kMostTopK = 1024, kMostTopLogprobs = 20;
inline bool AnyTypical(std::span<const Choice> choices) {
  return std::any_of(choices.begin(), choices.end(), [](const Choice& choice) { return choice.typical_p < 1; });
}

// What comes before the choice: a token whose logit has a bias or is penalised.
struct LogitEdit {
  int32_t id;      // outside of the vocabulary: nothing
  int32_t output;  // times that the output holds it; 0: only the prompt does; −1: neither
  double bias;     // −∞: the token is never chosen
};
inline constexpr int64_t kMostEdits = 1 << 18;  // of a batch

// What the log probabilities of a row are made of (engine/logprobs.h).
struct LogprobParts {
  double sum;          // Σ e^(logit − largest)
  float best, chosen;  // logits: the largest, and the chosen token's
  float logits[kMostTopLogprobs];
  int32_t ids[kMostTopLogprobs];  // the likeliest first
};

// Of a finite logit. What would leave the range of f32 stays at its end.
constexpr float Edited(float logit, const LogitEdit& edit, const Choice& choice) {
  constexpr double kMost = std::numeric_limits<float>::max(), kInfinity = std::numeric_limits<double>::infinity();
  if (edit.bias == -kInfinity) return -std::numeric_limits<float>::infinity();
  double x = static_cast<float>(std::clamp(logit + edit.bias, -kMost, kMost));
  if (edit.output >= 0) x = x > 0 ? x / choice.repetition_penalty : x * choice.repetition_penalty;
  if (edit.output > 0) x -= choice.presence_penalty + static_cast<double>(edit.output) * choice.frequency_penalty;
  return static_cast<float>(std::clamp(x, -kMost, kMost));
}

// The rows of one call, ragged: prompts, single decoding tokens and packed training documents alike. Sequences lie one after the other, without gaps.
struct Batch {
  std::vector<int32_t> tokens;  // [T] ids; on a GPU −1−i stands for chosen[i]
  std::vector<Sequence> sequences;
  std::optional<std::vector<int64_t>> wanted;  // rows whose hidden state is asked for, ascending; absent: all
  std::vector<Choice> choices;                 // for Accelerator::Choose
  std::span<const LogitEdit> edits;            // for Accelerator::Edit
  // In the GPU's memory. A sequence of one row whose token is negative there is read as if it had no state.
  const int32_t* chosen = nullptr;
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

// One sequence from the empty state, nothing kept.
Batch StatelessBatch(std::vector<int32_t> tokens);

// State of one Mamba-2 mixer for every slot: inputs in the activation dtype, boundary states in the wide one. Absent tensors: no state is kept.
//
// A slot holds the state at the last chunk boundary b and the inputs since, never the state in between. Each ring keeps token t at entry t mod its length,
// so a longer ring and a second boundary make older positions reachable: rolling back is choosing a smaller position, see docs/architecture.md.
struct MambaState {
  Tensor conv;  // [slots, L1 ≥ d_conv − 1, conv_dim]                  conv inputs (before the convolution): ring of tokens
  Tensor xbc;   // [slots, L2, conv_dim]  L2 a multiple of kSsdChunk   scan inputs x|B|C (after convolution and SiLU): ring of tokens
  Tensor dt;    // [slots, L2, heads]                                  time steps before bias and softplus: ring of tokens
  Tensor ssm;   // [slots, boundaries, heads, head_dim, state]         S_b at entry (b / kSsdChunk) mod boundaries; S_0 = 0 is not stored
};

// Keys (rotated) and values of one attention mixer, in the activation dtype: pages of kKvBlock tokens. Absent: attention sees the batch's own rows only.
struct KvPages {
  Tensor k, v;  // [pages, kKvBlock, kv_heads, head_dim]
};

}  // namespace bamba
