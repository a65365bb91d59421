#pragma once

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "model/bamba.h"
#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {

// Where and how a model runs.
struct Execution {
  int threads = 1;                     // of the host
  bool precise = true;                 // see Context::precise
  Accelerator* accelerator = nullptr;  // null: the host's processor
  bool invariant = false;              // see Context::invariant
  int64_t held = 0;                    // bytes of the model's weights that are in the process's own memory already (engine/narrow.h)
};

// Of activations: bf16 on an accelerator where the model's matrices are bf16 and nobody asked for precision, else f32.
Dtype ActivationDtype(const Model& model, const Execution& execution);

// A device made ready to run ops: threads, and a workspace of a planned size (engine/plan.h).
class Runtime {
 public:
  Runtime(const Model& model, const Execution& execution, size_t workspace_bytes);
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Context& context() { return context_; }

 private:
  ThreadPool threads_;
  Workspace workspace_;
  Context context_;
};

}  // namespace bamba
