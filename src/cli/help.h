#pragma once

#include <string>

#include "cli/command.h"

namespace bamba::cli {

inline constexpr size_t kHelpColumns = 100;

// What --help writes: purpose, usage, arguments, flags, commands, notes. Lines are at most kHelpColumns wide, the verbs' own notes excepted.
std::string HelpText(const Command& command);

// "-n, --tokens N", "MODEL", "TEXT …"
std::string Signature(const Parameter& parameter);

}  // namespace bamba::cli
