#pragma once

#include <cstdint>
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
  // The same, but gives for each of these rows the token of its largest logit, the lowest id among equals; −1 where a logit isn't finite. On an accelerator
  // nothing else comes to the host.
  std::span<const int32_t> RunGreedy();
  // Those of the next scored rows of the same batch.
  Tensor MoreLogits();

 private:
  bool Pad();
  int64_t Compute(bool choose);
  Tensor ToHost(const Tensor& logits);

  const Model& model_;
  BatchSize size_;
  Accelerator* accelerator_;
  Runtime runtime_;
  StatePool pool_;
  Tensor hidden_, logits_, chosen_;
  Buffer host_logits_;
  std::vector<int32_t> host_chosen_;
  Batch batch_;
  std::vector<SequenceState*> sequences_;    // of the batch
  int64_t unscored_row_ = 0, unscored_ = 0;  // of hidden_: the first row without logits, and how many there are
};

}  // namespace bamba
