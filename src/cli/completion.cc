#include <fmt/format.h>

#include <memory>

#include "base/terminal.h"
#include "cli/command.h"
#include "cli/verbs.h"

namespace bamba::cli {
namespace {

using Kind = Parameter::Kind;

// 'text' for a shell, whatever is in it.
std::string Quoted(std::string_view text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// Calls visit for the command and all below it.
template <typename Visit>
void ForEachCommand(const Command& command, const Visit& visit) {
  visit(command);
  for (const Command& verb : command.commands) ForEachCommand(verb, visit);
}

// --- bash

// What completes a value: @files, @directories, or the words themselves; ends with " …" where more values follow.
std::string BashValues(const Parameter& p) {
  std::string values = p.kind == Kind::kFile ? "@files" : p.kind == Kind::kDirectory ? "@directories" : fmt::format("{}", fmt::join(p.choices, " "));
  return p.many ? values + " …" : values;
}

constexpr const char* kBashFunctions = R"(
_bamba() {
  local cur=${COMP_WORDS[COMP_CWORD]} command=bamba flag= place=0 word i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    [[ $word != = ]] || continue  # bash takes --flag=value apart at the =
    if [[ $word == -* && -z ${flag%% *} ]] || [[ $word == -* && $flag == *… ]]; then
      flag=
      if _bamba_value "$command" "$word"; then flag="$word $REPLY"; fi
    elif [[ -n $flag ]]; then
      [[ $flag == *… ]] || flag=
    elif [[ " $(_bamba_words "$command") " == *" $word "* ]]; then
      command+=" $word"
    else
      place=$((place + 1))
    fi
  done
  [[ $cur != = ]] || cur=
  COMPREPLY=()
  if [[ -n $flag && ! ($flag == *… && $cur == -*) ]]; then
    REPLY=${flag#* }
  elif [[ $cur == -* ]]; then
    REPLY=$(_bamba_flags "$command")
  elif ! _bamba_value "$command" $place && ! _bamba_value "$command" last; then
    REPLY=$(_bamba_words "$command")
  fi
  REPLY=${REPLY%…}
  case $REPLY in
    @files*) compopt -o default ;;
    @directories*) compopt -o dirnames ;;
    *) COMPREPLY=($(compgen -W "$REPLY" -- "$cur")) ;;
  esac
}
complete -F _bamba bamba
)";

std::string BashCompletion(const Command& root) {
  std::string values, flags, words;
  ForEachCommand(root, [&](const Command& command) {
    std::string names, verbs;
    for (const Parameter& p : command.flags) {
      names += fmt::format(" {}", fmt::join(p.names, " "));
      for (const std::string& name : p.names)
        if (p.kind != Kind::kSwitch) values += fmt::format("    {}) REPLY={} ;;\n", Quoted(command.name + " " + name), Quoted(BashValues(p)));
    }
    for (size_t i = 0; i < command.arguments.size(); i++) {
      const Parameter& p = command.arguments[i];
      values += fmt::format("    {}) REPLY={} ;;\n", Quoted(fmt::format("{} {}", command.name, p.many ? "last" : std::to_string(i))), Quoted(BashValues(p)));
    }
    for (const Command& verb : command.commands) verbs += " " + verb.verb();
    flags += fmt::format("    {}) echo {} ;;\n", Quoted(command.name), Quoted(names));
    if (!verbs.empty()) words += fmt::format("    {}) echo {} ;;\n", Quoted(command.name), Quoted(verbs));
  });
  return "# Completion of bamba's command line for bash, as `bamba completion bash` writes it.\n"
         "# Sets REPLY to what completes the value of a flag, or the argument at a place; fails where there is no value.\n"
         "_bamba_value() {\n  case \"$1 $2\" in\n" +
         values + "    *) REPLY= && return 1 ;;\n  esac\n}\n_bamba_flags() {\n  case $1 in\n" + flags + "  esac\n}\n_bamba_words() {\n  case $1 in\n" + words +
         "  esac\n}\n" + kBashFunctions;
}

// --- zsh

// Text within a spec of _arguments: brackets end a description, colons a field.
std::string ZshText(std::string_view text) {
  std::string out;
  for (char c : text) out += (c == '[' || c == ']' || c == ':' || c == '\\') ? std::string("\\") + c : std::string(1, c);
  return out;
}

std::string ZshAction(const Parameter& p) {
  if (p.kind == Kind::kFile) return "_files";
  if (p.kind == Kind::kDirectory) return "_files -/";
  return p.choices.empty() ? " " : fmt::format("({})", fmt::join(p.choices, " "));
}

// One spec for each name of the flag; naming one excludes the others, unless it may come again.
std::string ZshFlag(const Parameter& p) {
  std::string specs;
  for (const std::string& name : p.names) {
    const bool is_long = name.starts_with("--"), has_value = p.kind != Kind::kSwitch;
    std::string spec = p.repeatable ? "*" : fmt::format("({})", fmt::join(p.names, " "));
    spec += name + (has_value ? (is_long ? "=" : "+") : "") + "[" + ZshText(p.help) + "]";
    if (has_value) spec += fmt::format("{}:{}:{}", p.many ? ":*-*" : "", ZshText(p.value), ZshAction(p));
    specs += " \\\n    " + Quoted(spec);
  }
  return specs;
}

std::string ZshFunctionName(const Command& command) {
  std::string name = "_" + command.name;
  for (char& c : name)
    if (c == ' ') c = '_';
  return name;
}

std::string ZshFunction(const Command& command) {
  std::string out = ZshFunctionName(command) + "() {\n";
  if (!command.commands.empty()) out += "  local curcontext=$curcontext state line ret=1\n";
  out += command.commands.empty() ? "  _arguments -S" : "  _arguments -C";
  for (const Parameter& p : command.flags) out += ZshFlag(p);
  for (size_t i = 0; i < command.arguments.size(); i++) {
    const Parameter& p = command.arguments[i];
    out += " \\\n    " + Quoted(fmt::format("{}:{}:{}", p.many ? "*" : std::to_string(i + 1), ZshText(p.value), ZshAction(p)));
  }
  if (command.commands.empty()) return out + "\n}\n";
  out += " \\\n    '1:command:->command' '*::argument:->arguments' && ret=0\n  case $state in\n    command)\n      local -a commands=(";
  for (const Command& verb : command.commands) out += "\n        " + Quoted(verb.verb() + ":" + ZshText(verb.help));
  out += ")\n      _describe command commands && ret=0 ;;\n    arguments)\n      case $words[1] in";
  for (const Command& verb : command.commands) out += fmt::format("\n        {}) {} && ret=0 ;;", verb.verb(), ZshFunctionName(verb));
  return out + "\n      esac ;;\n  esac\n  return ret\n}\n";
}

std::string ZshCompletion(const Command& root) {
  std::string out = "#compdef bamba\n# Completion of bamba's command line for zsh, as `bamba completion zsh` writes it.\n";
  ForEachCommand(root, [&](const Command& command) { out += ZshFunction(command); });
  // Loaded by name from fpath, the file is the function's body; sourced, it announces the function.
  return out + "if [[ $funcstack[1] == _bamba ]]; then _bamba \"$@\"; else compdef _bamba bamba; fi\n";
}

}  // namespace

void AddCompletion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand("completion", "Completion of this command line, for a shell");
  verb->add_option("SHELL", *shell, "bash or zsh")->required()->check(CLI::IsMember({"bash", "zsh"}));
  verb->footer(
      "Installed with bamba. For a program that is not installed:\n"
      "  source <(bamba completion bash)     in ~/.bashrc\n"
      "  source <(bamba completion zsh)      in ~/.zshrc, after compinit");
  verb->callback([shell, &app] {
    const Command root = Describe(app);
    WriteAll(kStandardOutput, *shell == "bash" ? BashCompletion(root) : ZshCompletion(root));
  });
}

}  // namespace bamba::cli
