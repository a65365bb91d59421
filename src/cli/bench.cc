#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <limits>
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
#include "eval/speed.h"
#include "io/checkpoint.h"
#include "io/config_file.h"
#include "io/json.h"
#include "io/named_config.h"
#include "model/params.h"
#include "model/random_weights.h"
#include "ops/cpu/simd.h"

namespace bamba::cli {
namespace {

struct Flags {
  std::string model, config, dtype;
  bool random = false, precise = false, json = false;
  std::vector<int64_t> prompt, generate, batch = {1}, context = {0};
  std::vector<int> threads = {AvailableCores()};
  DeviceFlags device;
  int repetitions = 3;
};

// The model of a measurement, and what the rows call it. Random weights are there in name only: untouched memory costs nothing until they are drawn.
struct Subject {
  std::string name;
  bool random;
  Model model;
};

Config ConfigOf(const std::string& name) {
  if (auto config = NamedConfig(name)) return *config;
  if (std::filesystem::is_directory(name)) return LoadConfig(name);
  if (std::filesystem::exists(name)) return ParseConfig(ReadFile(name), name).config;
  throw Error("--config {}: neither a shape that is known ({}) nor a config.json or a model's directory", name, fmt::join(ConfigNames(), ", "));
}

Subject Open(const Flags& flags, Execution& execution) {
  if (!flags.config.empty() && !flags.model.empty()) throw UsageError("give a MODEL or --config, not both");
  const std::string name = !flags.config.empty() ? flags.config : !flags.model.empty() ? flags.model : DefaultModel();
  if (flags.config.empty() && !flags.random) {
    if (!flags.dtype.empty()) throw UsageError("--dtype is for random weights; `bamba convert --dtype` changes those of a model");
    return {name, false, LoadToRun(name, execution)};
  }
  const Config config = flags.config.empty() ? LoadConfig(name) : ConfigOf(name);
  const Dtype dtype = flags.dtype == "f32" ? Dtype::kF32 : flags.dtype == "f16" ? Dtype::kF16 : Dtype::kBf16;
  // An absurd config must not get as far as the sum of its bytes, which may overflow.
  const int64_t numbers = ParameterCount(config), most = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(SizeOf(dtype));
  CheckFits({.weights = std::min(numbers, most) * static_cast<int64_t>(SizeOf(dtype)), .on_device = execution.accelerator != nullptr}, MemoryLeft(execution),
            name);
  return {name, true, AllocateModel(config, dtype)};
}

std::vector<SpeedTest> Tests(const Flags& flags, const Execution& execution) {
  const auto on = [&](int threads) {
    Execution e = execution;
    e.threads = threads;
    return e;
  };
  const bool unasked = flags.prompt.empty() && flags.generate.empty();
  const std::vector<int64_t> prompt = unasked ? std::vector<int64_t>{512} : flags.prompt, generate = unasked ? std::vector<int64_t>{128} : flags.generate;
  std::vector<SpeedTest> tests;
  for (int threads : flags.threads)
    for (int64_t batch : flags.batch)
      for (int64_t context : flags.context) {
        for (int64_t n : prompt)
          if (n > 0) tests.push_back({.batch = batch, .context = context, .prompt = n, .execution = on(threads)});
        for (int64_t n : generate)
          if (n > 0) tests.push_back({.batch = batch, .context = context, .generate = n, .execution = on(threads)});
      }
  if (tests.empty()) throw UsageError("nothing to measure: --prompt and --generate are 0");
  return tests;
}

// What a row says of a test.
struct Figures {
  double seconds, tokens_per_second, best_tokens_per_second, limit_tokens_per_second;
  Figures(const Model& model, const SpeedTest& test, SpeedResult result) {
    const auto tokens = static_cast<double>(test.tokens());
    std::sort(result.seconds.begin(), result.seconds.end());
    const size_t n = result.seconds.size();
    seconds = (result.seconds[(n - 1) / 2] + result.seconds[n / 2]) / 2;
    tokens_per_second = tokens / seconds, best_tokens_per_second = tokens / result.seconds[0];
    limit_tokens_per_second = tokens / LimitSeconds(model, test, result.rates);
  }
  double fraction() const { return tokens_per_second / limit_tokens_per_second; }
};

const char* TestName(const SpeedTest& test) { return test.generate > 0 ? "generate" : "prefill"; }

std::string Json(const Subject& subject, const SpeedTest& test, const SpeedResult& result, const Figures& figures) {
  const boost::json::object row = {{"model", subject.name},
                                   {"random_weights", subject.random},
                                   {"test", TestName(test)},
                                   {"batch", test.batch},
                                   {"n_prompt", test.prompt},
                                   {"n_gen", test.generate},
                                   {"context", test.context},
                                   {"device", test.execution.accelerator ? "cuda" : "cpu"},
                                   {"simd", cpu::SimdName()},
                                   {"gpu", test.execution.accelerator ? boost::json::value(test.execution.accelerator->name()) : boost::json::value(nullptr)},
                                   {"batch_invariant", test.execution.invariant || !test.execution.accelerator},
                                   {"threads", test.execution.threads},
                                   {"dtype", Name(subject.model.stored.value_or(MainDtype(subject.model)))},
                                   {"held_dtype", Name(MainDtype(subject.model))},
                                   {"precise", test.execution.precise},
                                   {"tokens_per_second", figures.tokens_per_second},
                                   {"milliseconds", figures.seconds * 1e3},
                                   {"limit_tokens_per_second", figures.limit_tokens_per_second},
                                   {"fraction_of_limit", figures.fraction()},
                                   {"repetitions", result.seconds.size()},
                                   {"best_tokens_per_second", figures.best_tokens_per_second},
                                   {"read_bytes_per_second", result.rates.bytes},
                                   {"operations_per_second", result.rates.operations}};
  return JsonLine(row) + "\n";
}

constexpr const char* kHeader = "{:<8} {:>7} {:>6} {:>8} {:>7} {:>9} {:>10} {:>9} {:>9} {:>9}  {}\n";

std::string TableHead(const Subject& subject, const Execution& execution, int64_t plan) {
  const std::string title =
      fmt::format("{} · {} {}{} · {} · takes {} of memory\n", subject.name, HumanCount(static_cast<double>(ParameterCount(subject.model.config))),
                  DtypeName(subject.model), subject.random ? ", random weights" : "",
                  NameOf(execution) + (execution.accelerator && execution.invariant ? ", batch-invariant" : ""), HumanBytes(static_cast<double>(plan)));
  return title + fmt::format(kHeader, "test", "tokens", "batch", "context", "threads", "tok/s", "time", "best", "limit", "of limit", "this machine");
}

std::string TableRow(const SpeedTest& test, const SpeedResult& result, const Figures& figures) {
  const std::string machine = fmt::format("{:.1f} GB/s, {:.0f} GFLOP/s", result.rates.bytes * 1e-9, result.rates.operations * 1e-9);
  return fmt::format(kHeader, TestName(test), test.prompt + test.generate, test.batch, test.context, test.execution.threads,
                     HumanRate(figures.tokens_per_second), HumanSeconds(figures.seconds), HumanRate(figures.best_tokens_per_second),
                     HumanRate(figures.limit_tokens_per_second), fmt::format("{:.1f} %", figures.fraction() * 100), machine);
}

// False where the user interrupted.
bool DrawWeights(Model& model) {
  int64_t total = 0;
  for (const Param& p : Parameters(model.config, model.weights)) total += static_cast<int64_t>(p.tensor->bytes());
  Progress progress("random weights", total, "bytes");
  ThreadPool threads(AvailableCores());
  return FillRandom(threads, model, 1, [&](int64_t done) {
    progress.Advance(done);
    return InterruptSignal() == 0;
  });
}

void RunBench(const Flags& flags) {
  Execution execution = flags.device.Open(flags.precise);
  std::vector<SpeedTest> tests = Tests(flags, execution);
  Subject subject = Open(flags, execution);
  int64_t plan = 0;
  for (SpeedTest& test : tests) {
    test.execution.precise = execution.precise;
    const MemoryPlan memory = PlanSpeed(subject.model, test);
    CheckFits(memory, MemoryLeft(execution), subject.name);
    plan = std::max(plan, memory.total());
  }
  CatchInterrupts();
  if (subject.random && !execution.accelerator && !DrawWeights(subject.model)) return;
  const Model placed = subject.random && execution.accelerator ? RandomModelOn(*execution.accelerator, subject.model, 1) : ModelFor(execution, subject.model);

  if (!flags.json) WriteAll(kStandardOutput, TableHead(subject, execution, plan));
  for (const SpeedTest& test : tests) {
    Progress progress(fmt::format("{} {}", TestName(test), test.prompt + test.generate), test.tokens() * flags.repetitions, "tok");
    const auto result = MeasureSpeed(placed, test, flags.repetitions, [&](int64_t done) {
      progress.Advance(done);
      return InterruptSignal() == 0;
    });
    if (!result) return;
    const Figures figures(subject.model, test, *result);
    WriteAll(kStandardOutput, flags.json ? Json(subject, test, *result, figures) : TableRow(test, *result, figures));
  }
}

}  // namespace

void AddBench(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = app.add_subcommand("bench", "How fast a model reads and writes, beside what the machine allows");
  AddModel(*verb, flags->model);
  verb->add_option("--config", flags->config,
                   fmt::format("A shape instead of a model, with random weights: {}, or a config.json", fmt::join(ConfigNames(), ", ")))
      ->check(NotEmpty("a shape's name or a path"))
      ->type_name("NAME");
  verb->add_flag("--random", flags->random, "Random weights: of a MODEL its config.json alone is read");
  verb->add_option("--dtype", flags->dtype, "Of random weights (default: bf16)")->check(CLI::IsMember({"f32", "bf16", "f16"}));
  const auto list = [&](const char* names, auto& values, int64_t least, int64_t most, const char* help) { AddList(*verb, names, values, least, most, help); };
  list("-p,--prompt", flags->prompt, 0, 1 << 24, "A row that reads so many tokens (default: 512 where neither -p nor -n is given); 0: none");
  list("-n,--generate", flags->generate, 0, 1 << 24, "A row that writes so many tokens one after the other (default: 128, likewise); 0: none");
  list("-b,--batch", flags->batch, 1, 1 << 16, "Sequences at a time, each with its own tokens (default: 1)");
  list("--context", flags->context, 0, 1 << 30, "Tokens that each sequence has before; they are made up, not computed (default: 0)");
  list("-t,--threads", flags->threads, 1, 1024, "Threads (default: one for each core)");
  flags->device.AddTo(*verb, false);
  verb->add_option("-r,--repetitions", flags->repetitions, "Measurements for a row, after a warm-up; their median counts")
      ->transform(Between(1, 10000))
      ->type_name("N")
      ->capture_default_str();
  verb->add_flag("--precise", flags->precise, "With bf16 weights, keep f32 activations where the processor could round them to bf16 for speed");
  verb->add_flag("--json", flags->json, "One JSON object a row");
  verb->footer(
      "Lists make a row for each combination. The limit is what this machine could do at best, measured\n"
      "in the same moments: its read bandwidth over the bytes of weights and state that a step has to\n"
      "read, or its arithmetic over the products of the matrices, whichever allows less.\n\n"
      "examples: bamba bench models/mini -p 512 -n 128 -b 1,4\n"
      "          bamba bench --config bamba-9b --dtype bf16 --random -n 16 --context 0,4096 --json");
  verb->callback([flags] { RunBench(*flags); });
}

}  // namespace bamba::cli
