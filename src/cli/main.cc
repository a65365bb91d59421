#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "cli/help.h"
#include "cli/usage.h"
#include "cli/verbs.h"
#include "ops/cpu/simd.h"

namespace bamba::cli {
namespace {

constexpr const char* kExamples = R"(examples:
  bamba run -p "The lighthouse keeper"          continue a text with the small model that comes along
  bamba run MODEL -f story.txt -n 500 --seed 1  a model's directory, a prompt from a file, a text that comes again
  bamba run MODEL --greedy --json < prompt.txt  the likeliest text, for a script
  bamba chat                                    a conversation, turn by turn

A MODEL is a directory as Hugging Face has it: config.json, *.safetensors, tokenizer.json.
`bamba COMMAND --help` explains one command.)";

void Main(int argc, char** argv) {
  CLI::App app("The whole life of the Bamba language models in one program.", "bamba");
  app.set_help_flag("-h,--help", "This text");
  app.set_version_flag("--version", "bamba " BAMBA_VERSION, "The program's version");
  app.require_subcommand(1);
  AddRun(app);
  AddChat(app);
  AddInfo(app);
  AddEval(app);
  AddVerify(app);
  AddBench(app);
  AddConvert(app);
  AddTokenize(app);
  AddCompletion(app);
  AddManual(app);
  app.footer(kExamples);  // behind the verbs, which would inherit it
  RefuseEmptyPaths(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    WriteAll(kStandardOutput, HelpText(Describe(ParsedVerb(app))));
  } catch (const CLI::CallForVersion& version) {
    WriteAll(kStandardOutput, std::string(version.what()) + "\n");
  } catch (const CLI::ParseError& fault) {
    throw UsageError("{}", UsageMessage(app, fault));
  }
}

int Fail(int code, std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "bamba: %s\n", message.c_str());
  return code;
}

// As shells have it: work that a signal ended says so, whether it ended in good order or by an error.
int ExitCode(int otherwise) { return InterruptSignal() ? 128 + InterruptSignal() : otherwise; }

}  // namespace
}  // namespace bamba::cli

int main(int argc, char** argv) {
  using namespace bamba;
  ReserveStandardStreams();
  IgnoreClosedPipes();
  try {
    cpu::ChooseSimd();
    cli::Main(argc, argv);
    return cli::ExitCode(0);
  } catch (const UsageError& e) {
    return cli::Fail(2, e.what());
  } catch (const ReaderGone&) {
    return 128 + SIGPIPE;  // silently, as by the signal
  } catch (const std::bad_alloc&) {
    return cli::Fail(1, "the machine is out of memory; use a smaller context or model");
  } catch (const std::exception& e) {
    return cli::Fail(cli::ExitCode(1), e.what());
  }
}
