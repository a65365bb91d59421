#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
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
#include "engine/plan.h"
#include "engine/runtime.h"
#include "eval/hidden_states.h"
#include "eval/perplexity.h"
#include "eval/reference.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "text/tokenizer.h"

namespace bamba::cli {
namespace {

constexpr int64_t kLogitRows = 64;  // of a long row's logits, at a time

// --- eval perplexity

struct PerplexityFlags {
  std::string model, file;
  PerplexityOptions options;
  int64_t stride = 0;  // 0: the window
  DeviceFlags device;
  bool fast = false, json = false;
};

void PrintPerplexity(const PerplexityFlags& flags, const PerplexityResult& r, double seconds) {
  if (flags.json) {
    const boost::json::object out = {{"nll_per_token", r.nll_per_token}, {"perplexity", r.perplexity}, {"perplexity_se", r.perplexity_se},
                                     {"bits_per_byte", r.bits_per_byte}, {"tokens", r.tokens},         {"windows", r.windows}};
    WriteAll(kStandardOutput, JsonLine(out) + "\n");
    return;
  }
  WriteAll(kStandardOutput,
           fmt::format("perplexity     {:.4f} ± {:.4f}\nnats per token {:.6f}\nbits per byte  {:.4f}\ntokens         {} in {} windows of {} (stride {})\n",
                       r.perplexity, r.perplexity_se, r.nll_per_token, r.bits_per_byte, Thousands(r.tokens), Thousands(r.windows),
                       Thousands(flags.options.window), Thousands(flags.options.stride)));
  WriteAll(kStandardError, fmt::format(" {} · {} tok/s\n", HumanSeconds(seconds), HumanRate(static_cast<double>(r.windows * flags.options.window) / seconds)));
}

void RunPerplexity(PerplexityFlags flags) {
  PerplexityOptions& options = flags.options;
  options.stride = flags.stride > 0 ? flags.stride : options.window;
  if (options.stride > options.window)
    throw UsageError("--stride {} is more than --window {}: tokens between windows would not be scored", options.stride, options.window);
  if (flags.model.empty()) flags.model = DefaultModel();
  const std::string text = ReadFile(flags.file);
  Execution execution = flags.device.Open(!flags.fast);
  const Model model = LoadToRun(flags.model, execution);
  const Tokenizer tokenizer = Tokenizer::Load(ModelFolder(flags.model));
  const std::vector<int32_t> tokens = tokenizer.Encode(text);
  if (tokens.size() < 2) throw Error("{}: has {} tokens; expected at least 2, one to read and one to predict", flags.file, tokens.size());
  std::vector<int32_t> bytes;
  for (int32_t id : tokens) bytes.push_back(static_cast<int32_t>(tokenizer.TokenBytes(id).size()));
  for (int32_t id : tokens)
    if (id >= model.config.vocab)
      throw Error("{}: the tokenizer gives id {}; expected ids below the model's vocabulary of {}", flags.model, id, model.config.vocab);

  const int64_t rows = std::min<int64_t>(options.window, std::max<int64_t>(1, static_cast<int64_t>(tokens.size()) - 1));
  const size_t workspace =
      MeasureWorkspace([&](Context& ctx) { ScoreTokens(ctx, model, std::vector<int32_t>(static_cast<size_t>(rows) + 1), 0, ctx.WideTemp({rows})); },
                       ActivationDtype(model, execution), execution.accelerator);
  CheckFits(PlanMemory(model, {.slots = 0}, workspace, execution), MemoryLeft(execution), flags.model);
  const Model placed = ModelFor(execution, model);
  Runtime runtime(model, execution, workspace);
  CatchInterrupts();
  const int64_t windows = WindowCount(static_cast<int64_t>(tokens.size()), options);
  const auto start = std::chrono::steady_clock::now();
  auto progress = std::make_unique<Progress>("perplexity", windows * rows, "tok");
  const PerplexityResult result = Perplexity(runtime.context(), placed, tokens, bytes, options, [&](const PerplexityResult& so_far) {
    progress->Note(fmt::format("{:.3f}", so_far.perplexity));
    progress->Advance(so_far.windows * rows);
    return InterruptSignal() == 0;
  });
  progress.reset();
  options.window = rows;
  if (result.windows < windows) WriteAll(kStandardError, fmt::format("bamba: interrupted after {} of {} windows\n", result.windows, windows));
  PrintPerplexity(flags, result, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

void AddPerplexity(CLI::App& eval) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* verb = eval.add_subcommand("perplexity", "How well a model predicts a text");
  AddModel(*verb, flags->model);
  verb->add_option("-f,--file", flags->file, "The text; - is standard input")->type_name("FILE")->required();
  verb->add_option("--window", flags->options.window, "Tokens a window reads, each from the empty state")
      ->transform(Between(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  verb->add_option("--stride", flags->stride,
                   "Tokens between windows; less than the window: each token but the first window's is scored with at least window − stride before it "
                   "(default: the window)")
      ->transform(Between(int64_t{1}, int64_t{1} << 24));
  verb->add_option("--max-windows", flags->options.max_windows, "Stop after so many windows (default: all)")->transform(Between(int64_t{1}, int64_t{1} << 40));
  flags->device.AddTo(*verb);
  verb->add_flag("--fast", flags->fast, "With bf16 weights, round activations to bf16 where the processor multiplies those faster, as run, chat and bench do");
  verb->add_flag("--json", flags->json, "One JSON object: nll_per_token, perplexity, perplexity_se, bits_per_byte, tokens, windows");
  verb->footer("example: bamba eval perplexity models/mini -f book.txt --window 1024 --max-windows 64");
  verb->callback([flags] { RunPerplexity(*flags); });
}

// --- eval logits

struct LogitsFlags {
  std::string model, ids, out;
  bool hidden = false, fast = false;
  DeviceFlags device;
};

void RunLogits(LogitsFlags flags) {
  if (flags.model.empty()) flags.model = DefaultModel();
  Execution execution = flags.device.Open(!flags.fast);
  const Model model = LoadToRun(flags.model, execution);
  const Config& c = model.config;
  const auto inputs = ReadTokenRows(SafetensorsFile(flags.ids), "input_ids", c.vocab);
  const int64_t batch = static_cast<int64_t>(inputs.size()), length = static_cast<int64_t>(inputs[0].size());
  const size_t workspace = MeasureWorkspace(
      [&](Context& ctx) {
        Frame frame(ctx);
        States stateless;
        Tensor hidden = ctx.Temp({length, c.dim}), logits = ctx.WideTemp({std::min(length, kLogitRows), c.vocab});
        Forward(ctx, c, model.weights, StatelessBatch(inputs[0]), stateless, hidden);
        Logits(ctx, c, model.weights, hidden.Rows(0, logits.rows()), logits);
      },
      ActivationDtype(model, execution), execution.accelerator);
  MemoryPlan plan = PlanMemory(model, {.slots = 0}, workspace, execution);
  if (!execution.accelerator) plan.workspace += (flags.hidden ? batch : 1) * length * c.dim * (c.layers() + 1) * static_cast<int64_t>(sizeof(float));
  CheckFits(plan, MemoryLeft(execution), flags.model);
  const Model placed = ModelFor(execution, model);
  Runtime runtime(model, execution, workspace);
  Context& ctx = runtime.context();

  std::vector<SafetensorsWriter::Entry> entries = {{"logits", Dtype::kF32, {batch, length, c.vocab}}};
  for (int64_t i = 0; flags.hidden && i <= c.layers(); i++) entries.push_back({fmt::format("hidden.{}", i), Dtype::kF32, {batch, length, c.dim}});
  SafetensorsWriter writer(flags.out, entries);
  CatchInterrupts();
  Progress progress("logits", batch * length, "tok");
  std::vector<HiddenStates> kept;
  for (size_t b = 0; b < inputs.size(); b++) {
    Frame row_frame(ctx);
    HiddenStates states = ForwardHiddenStates(ctx, placed, inputs[b]);
    for (int64_t t = 0; t < length; t += kLogitRows) {
      Frame frame(ctx);
      const int64_t rows = std::min(kLogitRows, length - t);
      Tensor logits = ctx.WideTemp({rows, c.vocab});
      Logits(ctx, c, placed.weights, states.last.Rows(t, rows), logits);
      std::vector<char> numbers(logits.bytes());
      ops::ToHost(ctx, logits, numbers.data());
      writer.Write(numbers.data(), numbers.size());
      if (InterruptSignal()) throw Error("interrupted; {} was not written", flags.out);
    }
    if (flags.hidden) kept.push_back(std::move(states));
    progress.Advance(static_cast<int64_t>(b + 1) * length);
  }
  for (size_t i = 1; i < entries.size(); i++)
    for (const HiddenStates& s : kept) writer.Write(s.states[i - 1].data(), s.states[i - 1].bytes());
  writer.Commit();
}

void AddLogits(CLI::App& eval) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* verb = eval.add_subcommand("logits", "Logits of given tokens, written to a file");
  AddModel(*verb, flags->model);
  verb->add_option("--ids", flags->ids, "safetensors with input_ids [B, T]; each row starts from the empty state")->type_name("FILE")->required();
  verb->add_option("-o,--out", flags->out, "safetensors to write: logits [B, T, vocab], f32")->type_name("FILE")->required();
  verb->add_flag("--hidden", flags->hidden, "Also hidden.i [B, T, dim]: 0 the embedding, i before layer i, the last one after the final norm");
  verb->add_flag("--fast", flags->fast, "With bf16 weights, round activations to bf16 where the processor multiplies those faster, as run, chat and bench do");
  flags->device.AddTo(*verb);
  verb->footer("example: bamba eval logits models/mini --ids ids.safetensors -o out.safetensors --hidden");
  verb->callback([flags] { RunLogits(*flags); });
}

}  // namespace

void AddEval(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Measure a model: perplexity, logits");
  eval->require_subcommand(1);
  AddPerplexity(*eval);
  AddLogits(*eval);
}

}  // namespace bamba::cli
