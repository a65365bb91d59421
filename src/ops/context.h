#pragma once

#include <functional>
#include <string_view>

#include "base/buffer.h"
#include "base/tensor.h"
#include "base/thread_pool.h"
#include "ops/accelerator.h"

namespace bamba {

// Sees (op, layer, output) after each op: dumps of hidden states, importance matrices and NaN hunts. Layer is the sub-block's index; -1 outside of them.
using Observer = std::function<void(std::string_view op, int layer, const Tensor& output)>;

// Where ops run, and what they may use. One call at a time.
struct Context {
  const OpTable* device = nullptr;     // the device is its table of ops
  Accelerator* accelerator = nullptr;  // whose table that is; null where ops run on the host
  Dtype dtype = Dtype::kF32;           // of activations
  ThreadPool* threads = nullptr;
  Workspace* workspace = nullptr;
  // Products with bf16 weights: false lets activations be rounded to bf16 where the processor has bf16 dot products, at twice the speed or more; sums are f32
  // either way. Products with other weights keep f32 activations.
  bool precise = true;
  // On an accelerator: a row's results have the same bits whatever its neighbours, its place in the batch and the split of its sequence over calls. On the CPU
  // they always have.
  bool invariant = false;
  Observer observer;
  int layer = -1;

  // Of the residual stream and of logits: never less than f32.
  Dtype wide() const { return dtype == Dtype::kBf16 ? Dtype::kF32 : dtype; }

  // Temporaries of the activation dtype and of the wide one; their numbers are undefined. They live until the innermost Frame ends.
  Tensor Temp(std::initializer_list<int64_t> shape) { return workspace->Take(dtype, shape); }
  Tensor WideTemp(std::initializer_list<int64_t> shape) { return workspace->Take(wide(), shape); }
};

// Temporaries taken during its life are released at its end; kept ones stay until an outer frame ends.
class Frame {
 public:
  explicit Frame(Context& ctx, bool keep = false) : workspace_(keep ? nullptr : ctx.workspace), mark_(ctx.workspace->used()) {}
  ~Frame() {
    if (workspace_) workspace_->ReleaseTo(mark_);
  }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

 private:
  Workspace* workspace_;
  size_t mark_;
};

}  // namespace bamba
