#include "cli/usage.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/command.h"
#include "cli/suggest.h"

namespace bamba::cli {
namespace {

std::string Suggestion(const std::string& nearest) { return nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest); }

std::vector<std::string> FlagNames(const Command& command) {
  std::vector<std::string> names;
  for (const Parameter& flag : command.flags) names.insert(names.end(), flag.names.rbegin(), flag.names.rend());
  return names;
}

std::vector<std::string> VerbNames(const Command& command) {
  std::vector<std::string> names;
  for (const Command& verb : command.commands) names.push_back(verb.verb());
  return names;
}

// CLI11's own words for these are about its types, not about what was typed.
std::string Plainly(const CLI::App& verb, const CLI::ParseError& fault) {
  const std::string what = fault.what();
  if (dynamic_cast<const CLI::ConversionError*>(&fault)) return what.substr(std::min(what.find(": ") + 2, what.size())) + ": expected a number";
  if (!dynamic_cast<const CLI::ArgumentMismatch*>(&fault)) return what;
  const std::string name = what.substr(0, what.find(':'));
  const CLI::Option* option = verb.get_option_no_throw(name);
  if (!option) return what;
  return option->count() == 0 || what.ends_with("missing") ? name + ": a value is missing" : fmt::format("{}: given {} times, expected once", name, option->count());
}

}  // namespace

std::string UsageMessage(const CLI::App& app, const CLI::ParseError& fault) {
  const CLI::App& verb = ParsedVerb(app);
  const Command command = Describe(verb);
  const auto see = [&](const char* what) { return fmt::format("   ({} --help{})", command.name, what); };
  const std::vector<std::string> flags = FlagNames(command), verbs = VerbNames(command);

  // What was left over is the cause, whatever CLI11 missed because of it.
  bool arguments_only = false;
  for (std::string word : app.remaining(true)) {
    if (word == "--") {
      arguments_only = true;
      continue;
    }
    if (!arguments_only && word.size() > 1 && word[0] == '-') {
      word = word.substr(0, word.find('='));
      if (std::find(flags.begin(), flags.end(), word) != flags.end())
        return fmt::format("'{}' stands in front of its command; expected {} {}", word, command.name, word);
      return fmt::format("no flag '{}'{}", word, Suggestion(word.size() > 2 ? Nearest(word, flags) : "")) + see(" lists them");
    }
    if (!verbs.empty()) return fmt::format("no command '{}'{}", word, Suggestion(Nearest(word, verbs))) + see(" lists them");
    return fmt::format("'{}' is one argument too many", word) + see("");
  }
  if (dynamic_cast<const CLI::RequiredError*>(&fault) && !verbs.empty()) return "no command given" + see(" lists them");
  return Plainly(verb, fault) + see("");
}

}  // namespace bamba::cli
