#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/progress.h"
#include "base/terminal.h"
#include "base/thread_pool.h"
#include "cli/default_model.h"
#include "cli/device_flags.h"
#include "cli/in_order.h"
#include "cli/prompts.h"
#include "cli/run_report.h"
#include "cli/sampling_flags.h"
#include "cli/values.h"
#include "cli/verbs.h"
#include "engine/engine.h"
#include "io/checkpoint.h"

namespace bamba::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExamples = R"(examples:
  bamba run -p "The lighthouse keeper"               continue a text with the small model that comes along
  bamba run MODEL -f story.txt -n 500 --seed 1       a model's directory, a prompt from a file, a text that comes again
  bamba run MODEL --greedy --json < prompt.txt       the likeliest text, for a script
  bamba run -p "Once" -p "Twice" --completions 3     several prompts, three texts each, written side by side
  bamba run --prompts lines.txt --json -n 50         a prompt in each line, an object for each text
  bamba run -p "The sea" -n 0 --logprobs 5 --echo    how likely the model finds a text, token by token
  bamba run -p "I" --logit-bias 42=-inf --stop "."   never token 42; end before the first full stop

A model has its own idea of the next token: softmax(logits). --logprobs tells that. Then come, in this order: --logit-bias, the penalties, --temperature, --top-k,
--top-p, --min-p, --typical.)";

// Texts that are written side by side where the user doesn't say: a batch reads the weights once for all of them, but each has a state in memory.
constexpr int kBatch = 8;

struct RunFlags {
  std::string model;
  PromptFlags prompts;
  SamplingFlags sampling;
  int64_t tokens = 256;
  int completions = 1, batch = 0;  // 0: as many as suit
  DeviceFlags device;
  int64_t context = 0;
  std::optional<int64_t> logprobs;
  bool echo = false, ids = false, json = false, precise = false;
};

double SecondsSince(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

Tokenizer LoadTokenizer(const std::string& model) {
  const fs::path file = fs::path(ModelFolder(model)) / "tokenizer.json";
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
    if (!FromChars(word, id)) throw UsageError("--ids: the prompt is no list of token ids: found '{}', expected a whole number such as 17", word);
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
  return ids;
}

// As many sequences as there are texts, within reason.
int32_t Sequences(const RunFlags& flags, size_t prompts) {
  if (flags.batch > 0 && flags.batch < flags.completions)
    throw UsageError("--batch {} is less than --completions {}, which are written side by side", flags.batch, flags.completions);
  const size_t texts = prompts * static_cast<size_t>(flags.completions),
               most = static_cast<size_t>(std::max(flags.batch > 0 ? flags.batch : kBatch, flags.completions));
  return static_cast<int32_t>(std::min(texts, most));
}

// Writes all texts of all requests; a prompt stands before each of its texts.
class Writing {
 public:
  Writing(const RunReport& report, const std::vector<std::string>& prompts, const std::vector<Request>& requests, bool json)
      : report_(report),
        prompts_(prompts),
        requests_(requests),
        json_(json),
        completions_(static_cast<size_t>(requests[0].completions)),
        out_(requests.size() * completions_, [](std::string_view piece) { WriteAll(kStandardOutput, piece); }) {}

  RunTotals Run(Engine& engine) {
    for (size_t index = 0; index < requests_.size(); index++) {
      for (size_t completion = 0; !json_ && completion < completions_; completion++) out_.Push(index * completions_ + completion, prompts_[index]);
      engine.Submit(requests_[index], {.text =
                                           [this, index](int completion, std::string_view piece) {
                                             if (!json_) out_.Push(Place(index, completion), piece);
                                           },
                                       .done = [this, index](int completion, Generation&& generation) { Done(index, completion, generation); }});
    }
    const auto start = std::chrono::steady_clock::now();
    while (engine.Step()) {
    }
    if (totals_.texts > 1) totals_.step_seconds = SecondsSince(start);
    return totals_;
  }
  const std::string& error() const { return error_; }  // of the first text that failed; empty where none did

 private:
  size_t Place(size_t index, int completion) const { return index * completions_ + static_cast<size_t>(completion); }

  void Done(size_t index, int completion, const Generation& generation) {
    const WrittenText written{.index = index, .prompt = prompts_[index], .request = requests_[index], .completion = completion, .generation = generation};
    const size_t place = Place(index, completion);
    if (json_) {
      out_.Push(place, Json(report_, written));
    } else {
      const std::string_view last = generation.text.empty() ? prompts_[index] : std::string_view(generation.text);
      if (!last.ends_with('\n')) out_.Push(place, "\n");
      out_.Push(place, LogprobTable(report_, written));
      if (place + 1 < requests_.size() * completions_) out_.Push(place, "\n");
    }
    out_.Close(place);
    totals_.texts++;
    totals_.prompt_tokens += completion == 0 ? static_cast<int64_t>(requests_[index].prompt.size()) : 0;
    totals_.tokens += static_cast<int64_t>(generation.tokens.size());
    totals_.steps += generation.steps;
    totals_.prompt_seconds += generation.prompt_seconds;
    totals_.step_seconds += generation.step_seconds;
    totals_.interrupted |= generation.finish == FinishReason::kInterrupted;
    if (error_.empty()) error_ = generation.error;
  }

  const RunReport& report_;
  const std::vector<std::string>& prompts_;
  const std::vector<Request>& requests_;
  bool json_;
  size_t completions_;
  InOrder out_;
  RunTotals totals_;
  std::string error_;
};

void Run(const RunFlags& flags) {
  Request request = flags.sampling.Read(flags.tokens);
  request.completions = flags.completions;
  request.top_logprobs = flags.logprobs, request.prompt_logprobs = flags.logprobs && flags.echo;
  const std::string directory = flags.model.empty() ? DefaultModel() : flags.model;
  const std::vector<std::string> prompts = flags.prompts.Read();
  const int32_t sequences = Sequences(flags, prompts.size());

  const auto start = std::chrono::steady_clock::now();
  Execution execution = flags.device.Open(flags.precise);
  const Model model = LoadToRun(directory, execution);
  std::optional<Tokenizer> tokenizer;
  if (!flags.ids) tokenizer = LoadTokenizer(directory);
  RunReport report{.model = ModelName(directory), .tokenizer = tokenizer ? &*tokenizer : nullptr, .echo = flags.echo};

  std::vector<Request> requests;
  int64_t longest = 0;
  for (const std::string& prompt : prompts) {
    request.prompt = tokenizer ? EncodePrompt(model, *tokenizer, prompt) : ParseIds(prompt);
    longest = std::max(longest, static_cast<int64_t>(request.prompt.size()));
    requests.push_back(request);
  }
  std::unique_ptr<Progress> loading;
  const auto tell_loading = [&](int64_t done, int64_t of) {
    if (!loading) loading = std::make_unique<Progress>("loading", of, "bytes");
    loading->Advance(done);
  };
  Engine engine(model, report.tokenizer,
                {.name = directory,
                 .execution = execution,
                 .context = flags.context > 0 ? flags.context : longest + flags.tokens,
                 .sequences = sequences,
                 .warn = [](const std::string& line) { std::fprintf(stderr, "bamba: %s\n", line.c_str()); },
                 .loading = tell_loading});
  loading.reset();
  for (const Request& one : requests) engine.Check(one);
  if (execution.accelerator) report.context_seconds = execution.accelerator->ContextSeconds();
  report.load_seconds = SecondsSince(start) - report.context_seconds;

  CatchInterrupts();
  Writing writing(report, prompts, requests, flags.json);
  const RunTotals totals = writing.Run(engine);
  if (!writing.error().empty()) throw Error("{}", writing.error());
  if (!flags.json) std::fprintf(stderr, "%s\n", ClosingLine(report, totals, request.sampling, model, engine).c_str());
}

}  // namespace

void AddRun(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* run = app.add_subcommand("run", "Continue a text");
  AddModel(*run, flags->model);
  flags->prompts.AddTo(*run);
  constexpr int64_t kMost = int64_t{1} << 30;
  run->add_option("-n,--tokens,--max-tokens", flags->tokens, "The most tokens to write")
      ->transform(Between(int64_t{0}, kMost))
      ->type_name("N")
      ->capture_default_str();
  run->add_option("--completions,--n", flags->completions, "Texts for each prompt, which is read once; text I has the seed plus I")
      ->transform(Between(1, 1024))
      ->type_name("N")
      ->capture_default_str();
  run->add_option("--logprobs", flags->logprobs, "Tell the log probability of each token, and those of the N likeliest beside it")
      ->transform(Between(int64_t{0}, kMost))
      ->type_name("N");
  run->add_flag("--echo", flags->echo, "The prompt is part of what --json and --logprobs tell");
  run->add_option("--batch", flags->batch, fmt::format("Texts written side by side (default: all of them, up to {})", kBatch))
      ->transform(Between(1, 1024))
      ->type_name("N");
  flags->device.AddTo(*run);
  run->add_option("--context", flags->context, "Tokens that attention has room for in each text (default: what the longest prompt and -n need)")
      ->transform(Between(int64_t{1}, kMost))
      ->type_name("N");
  run->add_flag("--precise", flags->precise, "With bf16 weights, keep f32 activations where the processor could round them to bf16 for speed");
  run->add_flag("--ids", flags->ids, "Prompts and texts are token ids; needs no tokenizer");
  run->add_flag("--json", flags->json, "Write an object a text: text, tokens, finish_reason, logprobs, prompt, seed, times");
  flags->sampling.AddTo(*run);
  run->footer(kExamples);
  run->callback([flags] { Run(*flags); });
}

}  // namespace bamba::cli
