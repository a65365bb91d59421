#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/terminal.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "cli/default_model.h"
#include "cli/sampling_flags.h"
#include "cli/verbs.h"
#include "engine/engine.h"
#include "io/checkpoint.h"
#include "model/params.h"

namespace bamba::cli {
namespace {

namespace fs = std::filesystem;

struct RunFlags {
  std::string model, prompt, file;
  bool has_prompt = false;
  int64_t tokens = 256;
  SamplingFlags sampling;
  int threads = 0;  // 0: one for each core
  int64_t context = 0;
  bool ids = false, json = false;
};

double SecondsSince(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

// A model is named by its directory, or by the file of its weights.
fs::path ModelDirectory(const std::string& model) { return fs::is_directory(model) ? fs::path(model) : fs::path(model).parent_path(); }

std::string ModelName(const std::string& model) {
  const auto path = fs::absolute(ModelDirectory(model)).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// A file's or a pipe's text ends with a line feed because editors and `echo` put one there, not because the prompt does.
std::string WithoutLastLineFeed(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

std::string ReadPrompt(const RunFlags& flags) {
  if (flags.has_prompt) return flags.prompt;
  if (!flags.file.empty()) return WithoutLastLineFeed(ReadFile(flags.file));
  if (IsTerminal(kStandardInput)) std::fputs("The prompt, then Ctrl-D:\n", stderr);
  return WithoutLastLineFeed(ReadFile("-"));
}

Tokenizer LoadTokenizer(const std::string& model) {
  const fs::path file = ModelDirectory(model) / "tokenizer.json";
  if (!fs::exists(file)) throw Error("{}: is not there; put the model's tokenizer beside it, or give and get token ids with --ids", file.string());
  return Tokenizer::Load(file.string());
}

std::vector<int32_t> ParseIds(std::string_view text) {
  std::vector<int32_t> ids;
  constexpr std::string_view kBetween = " ,\t\r\n";
  for (size_t at; (at = text.find_first_not_of(kBetween)) != std::string_view::npos;) {
    text.remove_prefix(at);
    const std::string_view word = text.substr(0, text.find_first_of(kBetween));
    int32_t id = 0;
    const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (fault != std::errc() || end != word.data() + word.size())
      throw UsageError("the prompt is no list of token ids: found '{}', expected a number (--ids)", word);
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
  return ids;
}

struct Report {
  std::string model;
  int64_t prompt_tokens = 0;
  uint64_t seed = 0;
  double load_seconds = 0;
};

double Rate(int64_t n, double seconds) { return n > 0 && seconds > 0 ? static_cast<double>(n) / seconds : 0; }

std::string Json(const Report& report, const Generation& g) {
  boost::json::object o;
  o["model"] = report.model;
  o["text"] = g.text;
  o["tokens"] = boost::json::array(g.tokens.begin(), g.tokens.end());
  o["finish_reason"] = Name(g.finish);
  o["prompt_tokens"] = report.prompt_tokens;
  o["seed"] = report.seed;
  o["load_seconds"] = report.load_seconds;
  o["prompt_seconds"] = g.prompt_seconds;
  o["prompt_tokens_per_second"] = Rate(report.prompt_tokens, g.prompt_seconds);
  o["seconds"] = g.step_seconds;
  o["tokens_per_second"] = Rate(g.steps, g.step_seconds);
  return boost::json::serialize(o) + "\n";
}

// The line under the text: what ran, and how fast. The rate of bytes is that of the weights, which every token reads once (a small model's from a cache).
std::string ClosingLine(const Report& report, const Generation& g, const Model& model, const Engine& engine, const Sampling& sampling) {
  std::string line = fmt::format(" {} · {} {} · loaded {} · prompt {} tok {}", report.model, HumanCount(static_cast<double>(ParameterCount(model.config))),
                                 Name(MainDtype(model)), HumanSeconds(report.load_seconds), report.prompt_tokens, HumanSeconds(g.prompt_seconds));
  line += fmt::format(" · {} tok", g.tokens.size());
  if (const double rate = Rate(g.steps, g.step_seconds); rate > 0)
    line += fmt::format(" at {} tok/s ({}/s)", HumanCount(rate), HumanBytes(rate * static_cast<double>(engine.StepWeightBytes())));
  if (sampling.temperature > 0) line += fmt::format(" · seed {}", report.seed);
  if (g.finish == FinishReason::kInterrupted) line += " · interrupted";
  return line;
}

void Run(const RunFlags& flags) {
  const Sampling sampling = flags.sampling.Read();
  const std::string directory = flags.model.empty() ? DefaultModel() : flags.model;
  const std::string prompt = ReadPrompt(flags);

  const auto start = std::chrono::steady_clock::now();
  const Model model = LoadModel(directory);
  std::optional<Tokenizer> tokenizer;
  if (!flags.ids) tokenizer = LoadTokenizer(directory);
  Report report{.model = ModelName(directory), .seed = sampling.seed, .load_seconds = SecondsSince(start)};

  Request request{.prompt = tokenizer ? EncodePrompt(model, *tokenizer, prompt) : ParseIds(prompt),
                  .max_tokens = flags.tokens,
                  .sampling = sampling,
                  .stop = flags.sampling.stop(),
                  .ignore_eos = flags.sampling.ignore_eos(),
                  .interrupted = [] { return InterruptSignal() != 0; }};
  report.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  Engine engine(model, tokenizer ? &*tokenizer : nullptr,
                {.name = directory,
                 .threads = flags.threads > 0 ? flags.threads : AvailableCores(),
                 .context = flags.context > 0 ? flags.context : report.prompt_tokens + flags.tokens,
                 .warn = [](const std::string& line) { std::fprintf(stderr, "bamba: %s\n", line.c_str()); }});

  engine.Check(request);
  CatchInterrupts();
  if (flags.json) {
    WriteAll(kStandardOutput, Json(report, engine.Generate(request, [](std::string_view) {})));
    return;
  }
  WriteAll(kStandardOutput, prompt);
  const Generation generation = engine.Generate(request, [](std::string_view piece) { WriteAll(kStandardOutput, piece); });
  const std::string& last = generation.text.empty() ? prompt : generation.text;
  if (!last.ends_with('\n')) WriteAll(kStandardOutput, "\n");
  std::fprintf(stderr, "%s\n", ClosingLine(report, generation, model, engine, sampling).c_str());
}

}  // namespace

void AddRun(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* run = app.add_subcommand("run", "Continue a text");
  run->add_option("model", flags->model, "The model's directory (default: the small one that comes with bamba)")->type_name("MODEL");
  auto* prompt = run->add_option("-p,--prompt", flags->prompt, "The text to continue; may be empty")->type_name("TEXT");
  auto* file = run->add_option("-f,--file", flags->file, "The file that holds it, without its last line feed; else standard input")->type_name("FILE");
  prompt->excludes(file);
  run->add_option("-n,--tokens", flags->tokens, "The most tokens to write")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->type_name("N")
      ->capture_default_str();
  run->add_option("-t,--threads", flags->threads, "Threads (default: one for each core)")->check(CLI::Range(1, 1024))->type_name("N");
  run->add_option("--context", flags->context, "Tokens that attention has room for (default: what the prompt and -n need)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->type_name("N");
  run->add_flag("--ids", flags->ids, "Prompt and text are token ids; needs no tokenizer");
  run->add_flag("--json", flags->json, "Write one object: text, tokens, finish_reason, prompt_tokens, seed, times");
  flags->sampling.AddTo(*run);
  run->callback([flags, prompt] {
    flags->has_prompt = prompt->count() > 0;
    Run(*flags);
  });
}

}  // namespace bamba::cli
