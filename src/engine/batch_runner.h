#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/logprobs.h"
#include "engine/plan.h"
#include "engine/runtime.h"
#include "engine/sampler.h"
#include "engine/state_pool.h"
#include "model/bamba.h"

namespace bamba {

// The largest batch that a runner is made for.
struct BatchSize {
  int64_t rows = 1, scored = 1;  // of which so many have their logits computed at a time
};

// A model and a pool of state, run one batch at a time. A running batch takes nothing from the heap.
class BatchRunner {
 public:
  // `model` must outlive this and lie where it is executed (engine/device_model.h). Throws Error where there is no room.
  BatchRunner(const Model& model, PoolSize pool, BatchSize size, const Execution& execution);
  ~BatchRunner();

  StatePool& pool() { return pool_; }
  Context& context() { return runtime_.context(); }

  // Appends the next tokens of a sequence, of which the last `scored` get logits. Each sequence is in a batch once, and stays where it is until Run. The pool
  // must have the pages.
  void Add(SequenceState& sequence, std::span<const int32_t> tokens, int64_t scored);

  // The same for one token, the one that scored row `row` of the batch which was queued last chooses; it gets logits. Where there is none, since a logit isn't
  // finite, what this row gives is undefined and the sequence lost.
  void AddChosen(SequenceState& sequence, int64_t row);

  // Runs the batch and begins a new one: advances its sequences. Logits [n, vocab] of the scored rows in the order of Add, the first BatchSize::scored at most,
  // in the host's memory; valid until the next Run, Queue or MoreLogits.
  Tensor Run();
  // Those of the next scored rows of the same batch.
  Tensor MoreLogits();

  // The same, but chooses a token for each scored row (of which there are BatchSize::scored at most) where the model runs, and doesn't wait. At most two
  // batches are queued whose tokens have not arrived.
  void Queue(std::span<const Choice> choices, std::span<const LogitEdit> edits);
  // Waits for the tokens of the batch that was queued first of these; −1 where a logit isn't finite. Valid until the next Queue.
  std::span<const int32_t> Arrive();
  // Of a token that arrived last, where its choice asks for them.
  TokenLogprobs LogprobsOf(int64_t row, int64_t top) const;
  // All logits of one of the scored rows of the batch that was queued last, in the host's memory; valid until the next call. Of a row without edits.
  std::span<const float> LogitsOf(int64_t row);

 private:
  // Of an accelerator's host memory.
  struct Unpin {
    Accelerator* accelerator;
    void operator()(void* p) const { accelerator->FreeHost(p); }
  };
  using Pinned = std::unique_ptr<void, Unpin>;

  void AddRows(SequenceState& sequence, std::span<const int32_t> tokens, int64_t scored, bool lost);
  bool Pad();
  int64_t Compute();
  Tensor ToHost(const Tensor& logits);

  const Model& model_;
  BatchSize size_;
  Accelerator* accelerator_;
  Runtime runtime_;
  StatePool pool_;
  Tensor hidden_, logits_;
  Buffer host_logits_;
  Pinned host_row_;
  // Of the batches that were queued: their tokens, where the device writes them and where they arrive.
  struct Queued {
    int64_t rows = 0;
    uint64_t arrived = 0;  // a mark
    int32_t* tokens = nullptr;
    LogprobParts* parts = nullptr;
    std::vector<TokenLogprobs> logprobs;  // where the CPU chooses
  };
  Queued queued_[2];
  int64_t queued_count_ = 0, arrived_count_ = 0;
  int32_t* device_tokens_ = nullptr;
  LogprobParts* device_parts_ = nullptr;
  Pinned host_tokens_, host_parts_;
  std::vector<int32_t> cpu_tokens_;
  SamplerSpace sampler_space_;  // where the CPU chooses
  Batch batch_;
  std::vector<SequenceState*> sequences_;    // of the batch
  int64_t unscored_row_ = 0, unscored_ = 0;  // of hidden_: the first row without logits, and how many there are
};

}  // namespace bamba
