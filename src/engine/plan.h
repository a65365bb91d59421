#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "engine/runtime.h"
#include "engine/state_pool.h"
#include "model/bamba.h"

namespace bamba {

// Rows of a prompt that go through the model at a time. On the CPU the weights are read and turned each time; between the times the program can be interrupted,
// and the more rows, the larger the temporaries: a large model, where a row is much work, gets fewer, unless AMX multiplies so fast that reading the weights
// would take as long, and many threads want pieces to share. A GPU wants enough rows to fill it many times over, and has the memory.
int64_t PrefillRows(const Config& c, const Execution& execution);

// Rows of prompts beside texts that are being written: with so few, a step is still mostly the reading of the weights, which the texts need anyway.
inline int64_t PrefillRowsBesideText(const Execution& execution) { return execution.accelerator ? 128 : 32; }

// What running a model takes of the machine's memory, in bytes, known before any of it is taken. Sums stop at INT64_MAX.
struct MemoryPlan {
  int64_t weights = 0;  // on the CPU as they lie in their files, mapped, or are held (engine/narrow.h); needed as a whole for every token
  int64_t slot = 0;     // the state of one sequence's Mamba-2 mixers
  int64_t page = 0;     // keys and values of kKvBlock tokens, of all attention mixers
  int64_t slots = 0, pages = 0;
  int64_t workspace = 0;   // temporaries of the largest step
  int64_t snapshots = 0;   // that may be kept, in the host's memory
  int64_t shared = 0;      // that an accelerator's ops share
  bool on_device = false;  // all but snapshots

  int64_t states() const;  // of all slots
  int64_t kv() const;      // of all pages
  int64_t total() const;
};

// What `work` takes of a workspace at most. It is called once, with a context whose ops do nothing and whose temporaries have no memory behind them.
size_t MeasureWorkspace(const std::function<void(Context&)>& work, Dtype activations = Dtype::kF32, Accelerator* accelerator = nullptr);

// Temporaries of a step of `rows` rows that computes the logits of `scored` of them, as engine/batch_runner.h takes it.
size_t StepWorkspace(const Model& model, int64_t rows, int64_t scored, const Execution& execution = {});

MemoryPlan PlanMemory(const Model& model, PoolSize size, size_t workspace, const Execution& execution = {});

// Memory that is left for a plan to take: the accelerator's, or the host's (base/memory.h) and what of the plan's weights it holds already.
int64_t MemoryLeft(const Execution& execution);

// Throws Error with the numbers where the plan takes more than `available` bytes. `name` is the model's.
void CheckFits(const MemoryPlan& plan, int64_t available, const std::string& name);

}  // namespace bamba
