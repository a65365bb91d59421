#include "engine/runtime.h"

#include "model/params.h"

namespace bamba {

Dtype ActivationDtype(const Model& model, const Execution& execution) {
  return execution.accelerator && !execution.precise && MainDtype(model) == Dtype::kBf16 ? Dtype::kBf16 : Dtype::kF32;
}

Runtime::Runtime(const Model& model, const Execution& execution, size_t workspace_bytes)
    : threads_(execution.threads), workspace_(workspace_bytes, execution.accelerator) {
  context_.device = execution.accelerator ? &execution.accelerator->ops() : &cpu::kTable;
  context_.accelerator = execution.accelerator, context_.dtype = ActivationDtype(model, execution);
  context_.threads = &threads_, context_.workspace = &workspace_;
  context_.precise = execution.precise, context_.invariant = execution.invariant;
}

}  // namespace bamba
