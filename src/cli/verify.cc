#include <cmath>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/default_model.h"
#include "cli/device_flags.h"
#include "cli/values.h"
#include "cli/verbs.h"
#include "engine/device_model.h"
#include "engine/engine.h"
#include "engine/narrow.h"
#include "engine/plan.h"
#include "engine/runtime.h"
#include "eval/reference.h"
#include "eval/trials.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "model/params.h"
#include "ops/cpu/simd.h"

namespace bamba::cli {
namespace {

struct Flags {
  std::string model, reference;
  double atol = 2e-5, grad_rtol = 1e-4;
  DeviceFlags device;
  int64_t trials = 0;
  uint64_t seed = 0;
  bool fast = false;
};

constexpr double kLossTolerance = 1e-5;

// Prints a line per check and remembers failures.
class Checks {
 public:
  void Line(const std::string& what, bool passed, const std::string& detail) {
    WriteAll(kStandardOutput, fmt::format("{:<10} {:<6} {}\n", what, passed ? "ok" : "FAILED", detail));
    count_++, failed_ += !passed;
  }
  void Bound(const std::string& what, double error, double bound, const std::string& detail) {
    Line(what, error <= bound, fmt::format("{:.2e} of {:.0e} allowed{}{}", error, bound, detail.empty() ? "" : ": ", detail));
  }
  void ThrowIfFailed() const {
    if (failed_) throw Error("{} of {} checks failed", failed_, count_);
  }

 private:
  int count_ = 0, failed_ = 0;
};

// Index of the first number that is not finite, or -1.
int64_t FirstNonFinite(const Tensor& t) {
  constexpr int64_t kPiece = 4096;
  float numbers[kPiece];
  for (int64_t begin = 0; begin < t.size(); begin += kPiece) {
    const int64_t n = std::min(kPiece, t.size() - begin);
    Convert(static_cast<const char*>(t.data()) + static_cast<size_t>(begin) * SizeOf(t.dtype()), t.dtype(), numbers, Dtype::kF32, static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++)
      if (!std::isfinite(numbers[i])) return begin + i;
  }
  return -1;
}

void CheckWeights(Model& model, Checks& checks) {
  int64_t tensors = 0, numbers = 0, bad = 0;
  for (const Param& p : Parameters(model.config, model.weights)) {
    const int64_t at = FirstNonFinite(*p.tensor);
    if (at >= 0) checks.Line("weights", false, fmt::format("'{}' {} holds a number that is not finite at element {}", p.name, p.tensor->ShapeString(), at));
    tensors++, numbers += p.size(), bad += at >= 0;
  }
  if (bad == 0) checks.Line("weights", true, fmt::format("{} tensors, {} numbers, all finite", tensors, HumanCount(static_cast<double>(numbers))));
}

// The loss that goldens.json beside the reference names.
std::optional<double> ReferenceLoss(const std::string& reference) {
  const std::string path = (std::filesystem::path(reference).parent_path() / "goldens.json").string();
  if (!std::filesystem::exists(path)) return std::nullopt;
  const json::value parsed = ParseJson(ReadFile(path), path);
  if (!parsed.is_object()) throw Error("{}: is no JSON object; expected {{\"loss\": …}}", path);
  return JsonKeys(parsed.as_object(), path).Number("loss");
}

void CheckAgainst(const Model& model, const Flags& flags, Checks& checks) {
  const SafetensorsFile file(flags.reference);
  const Config& c = model.config;
  const auto inputs = ReadTokenRows(file, "input_ids", c.vocab);
  const Execution execution = flags.device.Open(!flags.fast);
  const size_t workspace =
      MeasureWorkspace([&](Context& ctx) { MeasureComparison(ctx, model, inputs[0]); }, ActivationDtype(model, execution), execution.accelerator);
  MemoryPlan plan = PlanMemory(model, {.slots = 0}, workspace, execution);
  if (!execution.accelerator) plan.workspace += ParameterCount(c) * static_cast<int64_t>(sizeof(float));  // gradients
  CheckFits(plan, MemoryLeft(execution), flags.model);
  const Model placed = ModelFor(execution, model);
  Runtime runtime(model, execution, workspace);
  const ReferenceErrors errors = CompareWithReference(runtime.context(), placed, file, ReferenceLoss(flags.reference));

  if (errors.logits) checks.Bound("logits", *errors.logits, flags.atol, "");
  if (errors.hidden) checks.Bound("hidden", *errors.hidden, flags.atol, errors.worst_hidden);
  if (errors.loss && errors.reference_loss)
    checks.Bound("loss", std::abs(*errors.loss - *errors.reference_loss), kLossTolerance,
                 fmt::format("{:.7f}, reference {:.7f}", *errors.loss, *errors.reference_loss));
  if (errors.gradient)
    checks.Bound("gradients", *errors.gradient, flags.grad_rtol, fmt::format("{} tensors, worst {}", errors.gradients, errors.worst_gradient));
  for (const std::string& name : errors.missing_gradients)
    if (errors.gradients > 0) checks.Line("gradients", false, fmt::format("the reference has no grad.{}", name));
}

void CheckGreedy(const Model& model, const Flags& flags, Checks& checks) {
  const auto references = ReadGreedyReferences(SafetensorsFile(flags.reference), model.config.vocab);
  int64_t longest = 1;
  for (const GreedyReference& r : references) longest = std::max(longest, static_cast<int64_t>(r.prompt.size() + r.continuation.size()));
  if (references.empty()) return;
  Engine engine(model, nullptr, {.name = flags.model, .execution = flags.device.Open(true), .context = longest});
  for (const GreedyReference& r : references) {
    const Generation ours =
        engine.Generate({.prompt = r.prompt, .max_tokens = static_cast<int64_t>(r.continuation.size()), .ignore_eos = true}, [](std::string_view) {});
    const auto [at, reference_at] = std::mismatch(ours.tokens.begin(), ours.tokens.end(), r.continuation.begin(), r.continuation.end());
    const bool equal = at == ours.tokens.end() && reference_at == r.continuation.end();
    checks.Line("greedy", equal,
                fmt::format("{}: {} tokens after {}{}", r.name, r.continuation.size(), r.prompt.size(),
                            equal ? "" : fmt::format("; differs from token {} on", reference_at - r.continuation.begin())));
  }
}

void CheckTrials(Model model, const Flags& flags, Checks& checks) {
  Progress progress("trials", flags.trials, "trials");
  // A GPU keeps its promise with f32 activations, and with bf16 ones where it is asked to.
  Execution execution = flags.device.Open(!flags.device.invariant);
  HoldAsBf16(model, execution, AvailableMemory());  // as it is run
  const TrialReport report =
      RunTrials(model, {.trials = flags.trials, .seed = flags.seed, .execution = execution, .name = flags.model}, [&](const TrialReport& so_far) {
        progress.Note(fmt::format("{} differing bits", so_far.differing_bits));
        progress.Advance(so_far.trials);
      });
  checks.Line(
      "trials", report.failed == 0,
      fmt::format("{} trials at {}: {} rows of logits and {} states from {} batches, {} forks, {} snapshots, {} roll-backs, {} files; {} differing bits{}",
                  Thousands(report.trials),
                  NameOf(execution) + (model.stored ? ", " + DtypeName(model) : "") + (execution.invariant ? ", batch-invariant" : ""), Thousands(report.rows),
                  Thousands(report.states), Thousands(report.batches), Thousands(report.forks), Thousands(report.snapshots), Thousands(report.roll_backs),
                  Thousands(report.files), Thousands(report.differing_bits),
                  report.failed > 0 ? fmt::format(" in {} trials, first {}", report.failed, report.first) : ""));
}

void RunVerify(Flags flags) {
  if (flags.model.empty()) flags.model = DefaultModel();
  Model model = LoadModel(flags.model);
  if (!flags.reference.empty()) SafetensorsFile{flags.reference};  // its faults before the weights are read, which can take minutes
  Checks checks;
  CheckWeights(model, checks);
  if (!flags.reference.empty()) {
    CheckAgainst(model, flags, checks);
    CheckGreedy(model, flags, checks);
  }
  if (flags.trials > 0) CheckTrials(model, flags, checks);
  checks.ThrowIfFailed();
}

}  // namespace

void AddVerify(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = app.add_subcommand("verify", "Prove on this machine that a model computes what it should");
  AddModel(*verb, flags->model);
  CLI::Option* against =
      verb->add_option("--against", flags->reference,
                       "safetensors with what another implementation computed: input_ids [B, T] and any of logits, hidden.i, labels and grad.NAME, "
                       "generate.greedy; the loss is read from goldens.json beside it")
          ->type_name("FILE");
  verb->add_option("--atol", flags->atol, "Largest absolute error allowed of a logit or hidden state")
      ->transform(Between(0.0, 1e30))
      ->needs(against)
      ->capture_default_str();
  verb->add_option("--grad-rtol", flags->grad_rtol, "Largest error allowed of a gradient, ‖g − g_ref‖ / ‖g_ref‖ of each tensor")
      ->transform(Between(0.0, 1e30))
      ->needs(against)
      ->capture_default_str();
  verb->add_flag("--fast", flags->fast, "With bf16 weights, round activations to bf16 where the processor multiplies those faster, as run, chat and bench do")
      ->needs(against);
  CLI::Option* trials =
      verb->add_option(
              "--trials", flags->trials,
              "Play so many random texts in random pieces, batches and numbers of threads, with forks, snapshots, roll-backs and session files in between: "
              "logits and state must be the same bits as in one piece. BAMBA_SIMD chooses the instruction set")
          ->transform(Between(int64_t{0}, int64_t{1} << 40))
          ->type_name("N");
  verb->add_option("--seed", flags->seed, "Of the first trial; the next has the next number")
      ->transform(Between(int64_t{0}, INT64_MAX))
      ->needs(trials)
      ->type_name("N")
      ->capture_default_str();
  flags->device.AddTo(*verb);
  verb->footer(
      "Without --against and --trials only the weights are looked at: all must be finite. Exit code 1 where a check fails.\n"
      "examples: bamba verify --trials 1000\n"
      "          bamba verify tests/data/tiny-a --against tests/data/tiny-a/goldens.safetensors");
  verb->callback([flags] { RunVerify(*flags); });
}

}  // namespace bamba::cli
