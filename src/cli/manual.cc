#include <fmt/format.h>

#include "base/terminal.h"
#include "cli/command.h"
#include "cli/help.h"
#include "cli/verbs.h"

namespace bamba::cli {
namespace {

// Text for troff: no line of ours may look like one of its requests, and a hyphen that is typed stays one.
std::string Troff(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    if ((text[i] == '.' || text[i] == '\'') && (i == 0 || text[i - 1] == '\n')) out += "\\&";
    out += text[i] == '\\' ? "\\e" : text[i] == '-' ? "\\-" : std::string(1, text[i]);
  }
  return out;
}

void AppendParameters(const std::vector<Parameter>& parameters, std::string& out) {
  for (const Parameter& p : parameters) out += fmt::format(".TP\n\\fB{}\\fR\n{}\n", Troff(Signature(p)), Troff(p.help));
}

void AppendNotes(const Command& command, std::string& out) {
  if (!command.notes.empty()) out += fmt::format(".PP\n.nf\n{}\n.fi\n", Troff(command.notes));
}

// A section for each command that does something, in the order of --help.
void AppendCommands(const Command& command, std::string& out) {
  for (const Command& verb : command.commands) AppendCommands(verb, out);
  if (!command.commands.empty()) return;
  out += fmt::format(".SS {}\n{}.\n.PP\n\\fB{}\\fR\n", Troff(command.name), Troff(command.help), Troff(command.Usage()));
  AppendParameters(command.arguments, out);
  AppendParameters(command.flags, out);
  AppendNotes(command, out);
}

std::string Manual(const Command& root) {
  std::string out = fmt::format("'\\\" -*- coding: utf-8 -*-\n.TH BAMBA 1 \"\" \"bamba {}\" \"User Commands\"\n", BAMBA_VERSION);
  out +=
      fmt::format(".SH NAME\nbamba \\- {}\n.SH SYNOPSIS\n\\fB{}\\fR\n", Troff("run, measure, convert and verify Bamba language models"), Troff(root.Usage()));
  out += fmt::format(".SH DESCRIPTION\n{}\n.PP\nFlags that stand alone:\n", Troff(root.help));
  AppendParameters(root.flags, out);
  AppendNotes(root, out);
  out += ".SH COMMANDS\n";
  AppendCommands(root, out);
  return out + R"(.SH ENVIRONMENT
.TP
.B BAMBA_MODEL
The model to use where none is named, instead of the one that comes with bamba.
.TP
.B BAMBA_SIMD
The instruction set to use, instead of the best that the processor has.
.SH EXIT STATUS
0: done.
1: it could not be done, for the reason on standard error.
2: the command line is wrong.
128 + N: ended by signal N.
)";
}

}  // namespace

void AddManual(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("manual", "All of these texts as a manual page");
  verb->footer("example: bamba manual | man -l -");
  verb->callback([&app] { WriteAll(kStandardOutput, Manual(Describe(app))); });
}

}  // namespace bamba::cli
