#include "cli/usage.h"

#include <fmt/format.h>

#include "cli/suggest.h"

namespace bamba::cli {
namespace {

std::string Suggestion(const std::string& nearest) { return nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest); }

std::vector<std::string> FlagNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::vector<std::string> VerbNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands(nullptr)) names.push_back(verb->get_name());
  return names;
}

}  // namespace

std::string UsageMessage(const CLI::App& app, const CLI::ParseError& fault) {
  const CLI::App* verb = &app;
  std::string command = app.get_name();
  while (!verb->get_subcommands().empty()) {
    verb = verb->get_subcommands().front();
    command += " " + verb->get_name();
  }
  const auto see = [&](const char* what) { return fmt::format("   ({} --help{})", command, what); };

  // What was left over is the cause, whatever CLI11 missed because of it.
  for (std::string word : app.remaining(true)) {
    if (word.size() > 1 && word[0] == '-') {
      word = word.substr(0, word.find('='));
      return fmt::format("no flag '{}'{}", word, Suggestion(Nearest(word, FlagNames(*verb)))) + see(" lists them");
    }
    if (const auto verbs = VerbNames(*verb); !verbs.empty())
      return fmt::format("no command '{}'{}", word, Suggestion(Nearest(word, verbs))) + see(" lists them");
    return fmt::format("'{}' is one argument too many", word) + see("");
  }
  if (dynamic_cast<const CLI::RequiredError*>(&fault) && !VerbNames(*verb).empty()) return "no command given" + see(" lists them");
  return fault.what() + see("");
}

}  // namespace bamba::cli
