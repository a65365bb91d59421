#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/memory.h"
#include "base/terminal.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "cli/chat_command.h"
#include "cli/conversation.h"
#include "cli/default_model.h"
#include "cli/device_flags.h"
#include "cli/history_file.h"
#include "cli/line_reader.h"
#include "cli/sampling_flags.h"
#include "cli/values.h"
#include "cli/verbs.h"
#include "engine/plan.h"
#include "io/checkpoint.h"
#include "model/params.h"

namespace bamba::cli {
namespace {

constexpr size_t kHistory = 1000;                 // entries that the next chat knows
constexpr int64_t kMostContext = 32768;           // without --context, whatever the model was made for: its keys and values take memory
constexpr int64_t kSnapshots = int64_t{1} << 30;  // bytes at most for what /undo and /regen go back to

struct ChatFlags {
  std::string model, system;
  std::optional<std::string> form;
  int64_t tokens = 256;
  SamplingFlags sampling;
  DeviceFlags device;
  int64_t context = 0;
  bool precise = false;
};

// Beside the text: where nobody hears it, the chat goes on.
void TellAll(std::string_view lines) {
  try {
    WriteAll(kStandardError, lines);
  } catch (const Error&) {
  }
}
void Tell(const std::string& line) { TellAll(line + "\n"); }
void Warn(const std::string& line) { Tell("bamba: " + line); }

// One who types, or a script, and the conversation.
class Chat {
 public:
  Chat(Conversation& conversation, int64_t context, bool chance) : conversation_(conversation), context_(context), chance_(chance) {
    if (!interactive_) return;
    history_.emplace(HistoryPath(), Warn);
    for (const std::string& entry : history_->Load(kHistory)) lines_->Remember(entry);
  }

  // Until the input ends, /quit or a signal.
  void Run() {
    int64_t refused = 0;
    while (const std::optional<std::string> typed = Read()) {
      if (typed->find_first_not_of(" \t\n") == std::string::npos) continue;
      if (interactive_) lines_->Remember(*typed), history_->Add(*typed);
      try {
        if (!Obey(ParseChatCommand(*typed))) break;
      } catch (const Error& e) {
        if (output_lost_) throw;
        Warn(e.what());
        refused++;
      }
      if (MustEnd() || (!interactive_ && InterruptSignal())) return;
      ForgetCtrlC();
    }
    if (!interactive_ && refused > 0) throw Error("{} of the inputs could not be obeyed", refused);
  }

 private:
  // A text of one line, or of several that a backslash at a line's end joins. None where the chat is over.
  std::optional<std::string> Read() {
    std::string text, line;
    bool more = false;
    while (true) {
      const LineReader::Outcome outcome = lines_->Read(more ? "… " : "> ", line);
      if (outcome != LineReader::Outcome::kLine && interactive_) Tell("");
      if (outcome == LineReader::Outcome::kEnd) return more ? std::optional(text) : std::nullopt;
      if (outcome == LineReader::Outcome::kInterrupted) {
        if (!interactive_ || MustEnd()) return std::nullopt;
        ForgetCtrlC();
        text.clear(), more = false;
        continue;
      }
      const size_t last = line.find_last_not_of('\\');
      const size_t backslashes = line.size() - (last == std::string::npos ? 0 : last + 1);
      more = backslashes % 2 == 1;
      if (more) line.back() = '\n';
      text += line;
      if (!more) return text;
    }
  }

  // False where it was the last command.
  bool Obey(const ChatCommand& command) {
    const auto emit = [this](std::string_view piece) { Show(piece); };
    switch (command.verb) {
      case ChatVerb::kSay: Close(conversation_.Say(command.argument, emit)); break;
      case ChatVerb::kRegen: Close(conversation_.Regenerate(emit)); break;
      case ChatVerb::kUndo:
        conversation_.Undo();
        Tell(" the last turn is forgotten · " + Context());
        break;
      case ChatVerb::kReset:
        conversation_.Reset();
        Tell(" begun anew");
        break;
      case ChatVerb::kSave:
        conversation_.Save(command.argument);
        Tell(fmt::format(" {} tok kept in {}", Thousands(conversation_.tokens()), command.argument));
        break;
      case ChatVerb::kLoad:
        conversation_.Load(command.argument);
        Tell(fmt::format(" going on with {} · {}", command.argument, Context()));
        break;
      case ChatVerb::kHelp: TellAll(ChatHelp()); break;
      case ChatVerb::kQuit: return false;
    }
    return true;
  }

  void Show(std::string_view piece) {
    output_lost_ = true;
    WriteAll(kStandardOutput, piece);
    output_lost_ = false;
    line_open_ = !piece.ends_with('\n');
  }

  std::string Context() const {
    // The last token needs no room until it is read.
    return context_ > 0 ? fmt::format("context {} of {}", Thousands(std::min(conversation_.tokens(), context_)), Thousands(context_))
                        : fmt::format("{} tok so far", Thousands(conversation_.tokens()));
  }

  void Close(const Conversation::Reply& reply) {
    if (line_open_ || reply.generation.text.empty()) Show("\n");
    const Generation& g = reply.generation;
    std::string line = fmt::format(" {} tok read", Thousands(reply.read));
    if (g.prompt_seconds > 0) line += " in " + HumanSeconds(g.prompt_seconds);  // none where it was interrupted
    line += fmt::format(" · {} written", Thousands(g.tokens.size()));
    if (g.steps > 0 && g.step_seconds > 0) line += fmt::format(" at {} tok/s", HumanRate(static_cast<double>(g.steps) / g.step_seconds));
    line += " · " + Context();
    if (chance_) line += fmt::format(" · seed {}", reply.seed);
    if (g.finish == FinishReason::kInterrupted) line += " · interrupted";
    if (reply.full) line += " · the context is full: /undo, /reset, or a larger --context";
    Tell(line);
  }

  std::unique_ptr<LineReader> lines_ = OpenLineReader();
  const bool interactive_ = IsTerminal(kStandardInput);
  std::optional<HistoryFile> history_;
  Conversation& conversation_;
  int64_t context_;  // 0: without end
  bool chance_;
  bool line_open_ = false, output_lost_ = false;
};

std::string ChooseForm(const ChatFlags& flags, const std::string& directory) {
  if (flags.form) return *flags.form;
  try {
    if (const auto own = FindOwnChatTemplate(directory))
      Warn(fmt::format("{}: the model's own chat template is not yet supported; going on with --template none{}", own->where,
                       own->similar.empty() ? "" : fmt::format("; --template {} has the same special tokens", own->similar)));
  } catch (const Error& e) {
    Warn(e.what());  // it would have been a hint only
  }
  return "none";
}

// What is left of the machine, up to a bound.
int64_t SnapshotBytes(const Model& model, int64_t context, const Execution& execution) {
  const MemoryPlan plan = PlanMemory(model, {.slots = 1, .pages = PagesFor(context), .roll_back = true}, 0);
  const int64_t left = execution.accelerator ? AvailableMemory() : MemoryLeft(execution) - plan.total();
  return std::clamp<int64_t>(left / 2, 0, kSnapshots);
}

void RunChat(const ChatFlags& flags) {
  const Request reply = flags.sampling.Read(flags.tokens);
  const std::string name = flags.model.empty() ? DefaultModel() : flags.model;
  const std::string directory = ModelFolder(name);
  Execution execution = flags.device.Open(flags.precise);
  const Model model = LoadToRun(name, execution);
  const Tokenizer tokenizer = Tokenizer::Load(directory + "/tokenizer.json");
  const std::string form_name = ChooseForm(flags, directory);
  const ChatTemplate form(form_name, tokenizer, directory);

  const int64_t trained = model.config.context > 0 ? model.config.context : 4096;
  const bool attention = model.config.Count(BlockKind::kAttention) > 0;
  const int64_t context = attention ? (flags.context > 0 ? flags.context : std::min(trained, kMostContext)) : 0;
  Engine engine(
      model, &tokenizer,
      {.name = name, .execution = execution, .context = context, .roll_back = true, .snapshot_bytes = SnapshotBytes(model, context, execution), .warn = Warn});
  engine.CheckChoices(reply);  // now, not at the first turn
  Session session(engine);
  Conversation conversation(session, tokenizer, form, {.system = flags.system, .context = context, .reply = reply});
  const bool interactive = IsTerminal(kStandardInput);
  CatchInterrupts(interactive);
  if (interactive)
    Tell(fmt::format(" {} · {} parameters · template {} · {}/help lists the commands", ModelName(name),
                     HumanCount(static_cast<double>(ParameterCount(model.config))), form_name,
                     context > 0 ? fmt::format("context {} · ", Thousands(context)) : ""));
  Chat(conversation, context, reply.sampling.temperature > 0).Run();
}

constexpr const char* kExamples = R"(examples:
  bamba chat                                         go on with a story, turn by turn, with the small model that comes along
  bamba chat MODEL --template chatml --system "Hi!"  a model that was trained on conversations
  bamba chat MODEL --template transcript             one that was not
  printf 'Hi.\nAnd then?\n' | bamba chat --greedy     a script: each line a turn; replies on standard output, the rest on standard error

templates: none continues what is typed; transcript writes "User:" and "Assistant:" lines; chatml and llama3 use the special tokens of these names.
What is typed at a terminal is kept in $XDG_STATE_HOME/bamba/chat_history, else in ~/.local/state/bamba/chat_history.

commands and keys:
)";

}  // namespace

void AddChat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* chat = app.add_subcommand("chat", "Talk with a model, turn by turn");
  AddModel(*chat, flags->model);
  chat->add_option("--system", flags->system, "What the model is told before the first turn")->type_name("TEXT");
  chat->add_option("--template", flags->form, "How turns are written for the model (default: none)")->check(CLI::IsMember(ChatTemplate::Names()));
  chat->add_option("-n,--tokens", flags->tokens, "The most tokens of a reply")
      ->transform(Between(int64_t{1}, int64_t{1} << 30))
      ->type_name("N")
      ->capture_default_str();
  flags->device.AddTo(*chat);
  chat->add_option("--context", flags->context, "Tokens that attention has room for (default: what the model was made for, at most 32,768)")
      ->transform(Between(int64_t{1}, int64_t{1} << 30))
      ->type_name("N");
  chat->add_flag("--precise", flags->precise, "With bf16 weights, keep f32 activations where the processor could round them to bf16 for speed");
  flags->sampling.AddTo(*chat);
  const std::string commands = ChatHelp();
  chat->footer(kExamples + commands.substr(0, commands.size() - 1));
  chat->callback([flags] { RunChat(*flags); });
}

}  // namespace bamba::cli
