#include "engine/plan.h"

#include <limits>

#include "base/error.h"
#include "base/memory.h"
#include "base/units.h"
#include "engine/device_model.h"
#include "model/params.h"
#include "ops/cpu/simd.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

int64_t Sum(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? kMost : sum;
}

int64_t Product(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? kMost : product;
}

}  // namespace

int64_t PrefillRows(const Config& c, const Execution& execution) {
  if (execution.accelerator) return 8192;
  if (!execution.precise && cpu::CurrentSimd() == cpu::SimdLevel::kAmx) return execution.threads < 8 ? 1024 : 2048;
  return c.ffn <= 4096 && c.inner() <= 4096 ? 512 : 256;
}

int64_t MemoryPlan::states() const { return Product(slots, slot); }

int64_t MemoryPlan::kv() const { return Product(pages, page); }

int64_t MemoryPlan::total() const { return Sum(Sum(Sum(weights, workspace), on_device ? shared : snapshots), Sum(states(), kv())); }

size_t MeasureWorkspace(const std::function<void(Context&)>& work, Dtype activations, Accelerator* accelerator) {
  ThreadPool caller_only(1);
  Workspace workspace = Workspace::Measuring();
  Context ctx{.device = &kMeasuringTable, .accelerator = accelerator, .dtype = activations, .threads = &caller_only, .workspace = &workspace};
  work(ctx);
  return workspace.high_water();
}

size_t StepWorkspace(const Model& model, int64_t rows, int64_t scored, const Execution& execution) {
  const auto step = [&](Context& ctx) {
    States none;
    Tensor logits = ctx.WideTemp({scored, model.config.vocab}), hidden = ctx.Temp({rows, model.config.dim});
    if (execution.accelerator) ctx.workspace->Take(Dtype::kI32, {scored}), ctx.workspace->Take(Dtype::kI32, {scored, sizeof(LogprobParts) / sizeof(int32_t)});
    Forward(ctx, model.config, model.weights, StatelessBatch(std::vector<int32_t>(static_cast<size_t>(rows))), none, hidden);
    Logits(ctx, model.config, model.weights, hidden.Rows(0, scored), logits);
  };
  return MeasureWorkspace(step, ActivationDtype(model, execution), execution.accelerator);
}

MemoryPlan PlanMemory(const Model& model, PoolSize size, size_t workspace, const Execution& execution) {
  MemoryPlan plan{.slots = size.slots, .pages = size.pages, .workspace = static_cast<int64_t>(workspace), .on_device = execution.accelerator != nullptr};
  Weights weights = model.weights;  // views: the table of parameters points into the struct it is given
  for (const Param& p : Parameters(model.config, weights)) plan.weights = Sum(plan.weights, static_cast<int64_t>(p.tensor->bytes()));
  if (execution.accelerator) plan.weights = DeviceWeightBytes(model), plan.shared = execution.accelerator->OwnBytes();
  // Of one among many, since each tensor holds all slots or pages and is rounded up as a whole.
  constexpr int32_t kMany = 256;
  const auto bytes = [&](int32_t slots, int64_t pages) {
    const PoolSize part{.slots = slots, .pages = pages, .roll_back = size.roll_back, .inputs = ActivationDtype(model, execution)};
    const PoolSize none{.slots = 0, .roll_back = size.roll_back};
    return (static_cast<int64_t>(StatePool::Bytes(model.config, part)) - static_cast<int64_t>(StatePool::Bytes(model.config, none))) / kMany;
  };
  plan.slot = bytes(kMany, 0);
  plan.page = bytes(0, kMany);
  return plan;
}

int64_t MemoryLeft(const Execution& execution) {
  return execution.accelerator ? execution.accelerator->FreeBytes() + execution.accelerator->OwnBytes() : Sum(AvailableMemory(), execution.held);
}

void CheckFits(const MemoryPlan& plan, int64_t available, const std::string& name) {
  if (plan.total() <= available) return;
  const auto human = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
  const auto some = [](int64_t n, const char* what) { return fmt::format("{} {}{}", Thousands(n), what, n == 1 ? "" : "s"); };
  std::string parts;
  const auto part = [&](const std::string& what, int64_t bytes) {
    if (bytes > 0) parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", what, human(bytes));
  };
  part("weights", plan.weights);
  part("state of " + some(plan.slots, "sequence"), plan.states());
  part("keys and values of " + some(Product(plan.pages, kKvBlock), "token"), plan.kv());
  part("temporaries", plan.workspace);
  plan.on_device ? part("what its operations share", plan.shared) : part("snapshots", plan.snapshots);
  throw Error("{}: needs {} of memory ({}), {} has {} left; ask for less (--context, -n, --batch) or take a smaller model", name, human(plan.total()), parts,
              plan.on_device ? "the GPU" : "this machine", human(available));
}

}  // namespace bamba
