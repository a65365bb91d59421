#pragma once

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {

// The CPU made ready to run ops: threads, and a workspace of a planned size (engine/plan.h).
class Runtime {
 public:
  Runtime(int threads, size_t workspace_bytes) : threads_(threads), workspace_(workspace_bytes) {
    context_.device = &cpu::kTable, context_.threads = &threads_, context_.workspace = &workspace_;
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Context& context() { return context_; }

 private:
  ThreadPool threads_;
  Workspace workspace_;
  Context context_;
};

}  // namespace bamba
