#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace bamba::cli {

// The command line as data, read from what the parser was told: help, completions and the manual are written from it, so none of them can know less than
// the parser does. An option's type_name says what its value is: FILE, DIR and MODEL (a directory) are paths; CLI::IsMember lists all values there are.
struct Parameter {
  enum class Kind { kSwitch, kText, kChoice, kFile, kDirectory };

  std::vector<std::string> names;    // "-n", "--tokens"; none for an argument, which is known by its place
  std::string value;                 // stands for its value: "N", "MODEL", "hf|mamba_ssm"; empty for a switch
  std::vector<std::string> choices;  // of Kind::kChoice
  std::string help;                  // ends with the default
  std::string group;                 // heading of flags that belong together; empty for the others
  Kind kind = Kind::kText;
  bool required = false;
  bool many = false;        // takes several values in a row
  bool repeatable = false;  // may be given again
};

struct Command {
  std::string name;  // in full: "bamba eval perplexity"
  std::string help, notes;
  std::vector<Parameter> arguments, flags;
  std::vector<Command> commands;

  std::string verb() const { return name.substr(name.rfind(' ') + 1); }
  std::string Usage() const;  // "bamba eval perplexity [FLAGS] [MODEL] -f FILE"
};

Command Describe(const CLI::App& app);

// The verb that a parsed command line asked for: the innermost.
const CLI::App& ParsedVerb(const CLI::App& app);

// From now on an empty string for a path is an error of the command line: a script's unset variable must not mean the default.
void RefuseEmptyPaths(CLI::App& app);

}  // namespace bamba::cli
