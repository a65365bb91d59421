#include "cli/chat_command.h"

#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "cli/suggest.h"

namespace bamba::cli {
namespace {

struct Verb {
  ChatVerb verb;
  const char* name;
  bool takes_file = false;
};

constexpr Verb kVerbs[] = {{ChatVerb::kReset, "/reset"}, {ChatVerb::kSave, "/save", true}, {ChatVerb::kLoad, "/load", true}, {ChatVerb::kRegen, "/regen"},
                           {ChatVerb::kUndo, "/undo"},   {ChatVerb::kHelp, "/help"},       {ChatVerb::kQuit, "/quit"}};

std::string_view WithoutBlanks(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  return first == std::string_view::npos ? std::string_view() : text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

std::string FromHome(std::string_view path) {
  const char* home = std::getenv("HOME");
  return home && path.starts_with("~/") ? std::string(home) + std::string(path.substr(1)) : std::string(path);
}

}  // namespace

ChatCommand ParseChatCommand(std::string_view typed) {
  if (!typed.starts_with('/') || typed.find('\n') != std::string_view::npos) return {ChatVerb::kSay, std::string(typed)};
  if (typed.starts_with("//")) return {ChatVerb::kSay, std::string(typed.substr(1))};
  const size_t end = std::min(typed.find_first_of(" \t"), typed.size());
  const std::string_view name = typed.substr(0, end), argument = WithoutBlanks(typed.substr(end));
  for (const Verb& verb : kVerbs) {
    if (name != verb.name) continue;
    if (verb.takes_file && argument.empty()) throw Error("{} wants a file: {} FILE", name, name);
    if (!verb.takes_file && !argument.empty()) throw Error("{} takes no argument, found '{}'", name, argument);
    return {verb.verb, FromHome(argument)};
  }
  std::vector<std::string> names;
  for (const Verb& verb : kVerbs) names.emplace_back(verb.name);
  const std::string nearest = Nearest(name, names);
  throw Error("no command '{}'{}   (/help lists them; // begins a text that starts with /)", name, nearest.empty() ? "" : "; did you mean '" + nearest + "'?");
}

const char* ChatHelp() {
  return "  /regen        another reply to the same text\n"
         "  /undo         forget the last turn; again: the one before\n"
         "  /reset        begin anew; the system's text stays\n"
         "  /save FILE    keep the conversation, with the model's state\n"
         "  /load FILE    go on with one that was kept\n"
         "  /quit         leave, as Ctrl-D does\n"
         "  A backslash at the end of a line, or a paste, makes a text of several lines. // begins a text that starts with /.\n"
         "  Ctrl-C ends a reply, or throws away what was typed.\n";
}

}  // namespace bamba::cli
