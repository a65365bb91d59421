#include "cli/help.h"

#include <fmt/format.h>

#include <algorithm>

namespace bamba::cli {
namespace {

constexpr size_t kTextColumn = 30;

// Columns that UTF-8 text takes: ours has no wide or combining characters.
size_t Columns(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// "  label     text", the text wrapped in its own column; it starts a line of its own where the label is too long.
std::string Entry(const std::string& label, std::string_view text) {
  std::string out = "  " + label;
  size_t column = Columns(out);
  if (column + 2 > kTextColumn) out += '\n', column = 0;
  out.append(kTextColumn - column, ' '), column = kTextColumn;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string_view word = text.substr(at, end - at);
    if (at > 0 && column + 1 + Columns(word) > kHelpColumns) {
      out += '\n' + std::string(kTextColumn, ' ');
      column = kTextColumn;
    } else if (at > 0) {
      out += ' ', column++;
    }
    out += word, column += Columns(word);
    at = end + 1;
  }
  return out + '\n';
}

}  // namespace

std::string Signature(const Parameter& p) {
  std::string names = fmt::format("{}", fmt::join(p.names, ", "));
  if (!p.value.empty()) names += (names.empty() ? "" : " ") + p.value;
  return p.many ? names + " …" : names;
}

std::string HelpText(const Command& command) {
  std::string out = fmt::format("{}\n\nusage: {}\n", command.help, command.Usage());
  if (!command.commands.empty()) out += '\n';
  for (const Command& verb : command.commands) out += Entry(verb.verb(), verb.help);
  if (!command.arguments.empty()) out += '\n';
  for (const Parameter& p : command.arguments) out += Entry(Signature(p), p.help);
  std::vector<std::string> groups;
  for (const Parameter& p : command.flags)
    if (std::find(groups.begin(), groups.end(), p.group) == groups.end()) groups.push_back(p.group);
  for (const std::string& group : groups) {
    out += group.empty() ? "\n" : fmt::format("\n{}:\n", group);
    for (const Parameter& p : command.flags)
      if (p.group == group) out += Entry(Signature(p), p.help);
  }
  if (!command.notes.empty()) out += '\n' + command.notes + '\n';
  return out;
}

}  // namespace bamba::cli
