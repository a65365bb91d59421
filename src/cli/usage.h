#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace bamba::cli {

// The one line that says what is wrong with a command line, with the nearest name where a flag or a verb is unknown. `app` has just thrown `fault`.
std::string UsageMessage(const CLI::App& app, const CLI::ParseError& fault);

}  // namespace bamba::cli
