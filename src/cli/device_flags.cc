#include "cli/device_flags.h"

#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "cli/values.h"
#include "engine/narrow.h"
#include "io/checkpoint.h"
#include "ops/cpu/simd.h"

namespace bamba::cli {

void DeviceFlags::AddTo(CLI::App& verb, bool with_threads) {
  verb.add_option("--device", device, "Where the model runs: cpu, cuda (an NVIDIA GPU), or auto, which is cuda where there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb.add_flag("--batch-invariant", invariant,
                "On a GPU: the same bits whatever else is in a batch and however a text is cut into calls, at some cost. On the CPU that is always so");
  if (with_threads) verb.add_option("-t,--threads", threads, "Threads (default: one for each core)")->transform(Between(1, 1024))->type_name("N");
}

Execution DeviceFlags::Open(bool precise) const {
  Execution execution{.threads = threads > 0 ? threads : AvailableCores(), .precise = precise, .invariant = invariant};
  if (device == "cpu") return execution;
  std::string reason;
  execution.accelerator = OpenCuda(&reason);
  if (!execution.accelerator && device == "cuda") throw Error("--device cuda: {}; --device cpu runs the same model on the processor", reason);
  return execution;
}

Model LoadToRun(const std::string& path, Execution& execution) {
  Model model = LoadModel(path);
  std::unique_ptr<Progress> loading;
  HoldAsBf16(model, execution, AvailableMemory(), [&](int64_t done, int64_t of) {
    if (!loading) loading = std::make_unique<Progress>("loading", of, "bytes");
    loading->Advance(done);
  });
  return model;
}

std::string NameOf(const Execution& execution) {
  return execution.accelerator ? "cuda " + execution.accelerator->name() : std::string("cpu ") + cpu::SimdName();
}

}  // namespace bamba::cli
