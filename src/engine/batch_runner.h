#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/plan.h"
#include "engine/runtime.h"
#include "engine/state_pool.h"
#include "model/bamba.h"

namespace bamba {

// The largest batch that a runner is made for.
struct BatchSize {
  int64_t rows = 1, scored = 1;  // of which so many have their logits computed at a time
};

// The largest logits of some rows: `count` of each, the largest first, of equal ones the lowest id. Ids are −1 where a logit of the row isn't finite.
struct Candidates {
  int64_t rows = 0, count = 0;
  const int32_t* ids = nullptr;
  const float* logits = nullptr;
  std::span<const int32_t> IdsOf(int64_t row) const { return {ids + row * count, static_cast<size_t>(count)}; }
  std::span<const float> LogitsOf(int64_t row) const { return {logits + row * count, static_cast<size_t>(count)}; }
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

  // Runs the batch and begins a new one: advances its sequences. Logits [n, vocab] of the scored rows in the order of Add, the first BatchSize::scored at most,
  // in the host's memory; valid until the next Run or MoreLogits.
  Tensor Run();
  // The same, but gives so many (at most MostCandidates; on the CPU at most one) of the largest logits of each of these rows; of one it gives the id only. The
  // rest stays where the model runs.
  Candidates RunCandidates(int64_t count);
  // All logits of one of these rows, in the host's memory; valid until the next call.
  std::span<const float> LogitsOf(int64_t row);
  // RunCandidates(1)'s tokens.
  std::span<const int32_t> RunGreedy();
  // Those of the next scored rows of the same batch.
  Tensor MoreLogits();

 private:
  // Of an accelerator's host memory.
  struct Unpin {
    Accelerator* accelerator;
    void operator()(void* p) const { accelerator->FreeHost(p); }
  };
  using Pinned = std::unique_ptr<void, Unpin>;

  bool Pad();
  int64_t Compute(int64_t candidates);
  Tensor ToHost(const Tensor& logits);

  const Model& model_;
  BatchSize size_;
  Accelerator* accelerator_;
  Runtime runtime_;
  StatePool pool_;
  Tensor hidden_, logits_;
  int32_t* candidates_ = nullptr;   // on the accelerator: ids, then logits, of the rows of a step
  int64_t rows_of_candidates_ = 0;  // with those of padding
  Buffer host_logits_;
  Pinned host_candidates_, host_row_;
  std::vector<int32_t> likeliest_;  // where the CPU chooses
  Batch batch_;
  std::vector<SequenceState*> sequences_;    // of the batch
  int64_t unscored_row_ = 0, unscored_ = 0;  // of hidden_: the first row without logits, and how many there are
};

}  // namespace bamba
