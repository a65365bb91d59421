#include "cli/command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "cli/values.h"

namespace bamba::cli {
namespace {

// CLI11 writes a type as "FILE", or "TEXT:{hf,mamba_ssm}" with the members of a set.
std::vector<std::string> Choices(const std::string& type) {
  const size_t open = type.find('{'), close = type.rfind('}');
  return open == std::string::npos || close < open ? std::vector<std::string>() : CLI::detail::split(type.substr(open + 1, close - open - 1), ',');
}

Parameter::Kind KindOf(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return Parameter::Kind::kSwitch;
  const std::string type = option.get_type_name(), name = type.substr(0, type.find(':'));
  if (!Choices(type).empty()) return Parameter::Kind::kChoice;
  if (name == "FILE") return Parameter::Kind::kFile;
  return name == "DIR" || name == "MODEL" ? Parameter::Kind::kDirectory : Parameter::Kind::kText;
}

// What stands for a value where the verb doesn't say.
std::string Placeholder(const std::string& type) {
  if (type == "INT" || type == "UINT") return "N";
  return type == "FLOAT" ? "X" : type;
}

Parameter DescribeOption(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  Parameter p{.help = option.get_description(), .kind = KindOf(option), .required = option.get_required()};
  for (const std::string& name : option.get_snames()) p.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) p.names.push_back("--" + name);
  if (p.kind == Parameter::Kind::kChoice) p.choices = Choices(type);
  if (p.kind != Parameter::Kind::kSwitch)
    p.value = p.choices.empty() ? Placeholder(type.substr(0, type.find(':'))) : fmt::format("{}", fmt::join(p.choices, "|"));
  if (p.names.empty()) {
    p.value = option.get_name(true);
    std::transform(p.value.begin(), p.value.end(), p.value.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  }
  const bool list = option.get_expected_max() >= CLI::detail::expected_max_vector_size;
  p.many = list && (p.names.empty() || option.get_allow_extra_args());
  p.repeatable = list || option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
  if (option.get_group() != "Options") p.group = option.get_group();
  if (!option.get_default_str().empty()) p.help += fmt::format(" (default: {})", option.get_default_str());
  return p;
}

}  // namespace

std::string Command::Usage() const {
  if (!commands.empty()) return name + " COMMAND …";
  std::string usage = name + " [FLAGS]";
  for (const Parameter& p : flags)
    if (p.required) usage += fmt::format(" {} {}", p.names.front(), p.value);
  for (const Parameter& p : arguments) {
    const std::string value = p.many ? p.value + " …" : p.value;
    usage += p.required ? " " + value : " [" + value + "]";
  }
  return usage;
}

Command Describe(const CLI::App& app) {
  Command command{.name = app.get_name(), .help = app.get_description(), .notes = app.get_footer()};
  for (const CLI::App* above = app.get_parent(); above; above = above->get_parent()) command.name = above->get_name() + " " + command.name;
  command.notes.erase(0, command.notes.find_first_not_of('\n'));
  for (const CLI::Option* option : app.get_options()) {
    const Parameter p = DescribeOption(*option);
    (p.names.empty() ? command.arguments : command.flags).push_back(p);
  }
  for (const CLI::App* verb : app.get_subcommands(nullptr)) command.commands.push_back(Describe(*verb));
  return command;
}

const CLI::App& ParsedVerb(const CLI::App& app) {
  const auto verbs = app.get_subcommands();
  return verbs.empty() ? app : ParsedVerb(*verbs.front());
}

void RefuseEmptyPaths(CLI::App& app) {
  const CLI::Validator not_empty = NotEmpty("a path");
  for (CLI::Option* option : app.get_options())
    if (const auto kind = KindOf(*option); kind == Parameter::Kind::kFile || kind == Parameter::Kind::kDirectory) option->check(not_empty);
  for (CLI::App* verb : app.get_subcommands(nullptr)) RefuseEmptyPaths(*verb);
}

}  // namespace bamba::cli
