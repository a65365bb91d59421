#pragma once

#include <CLI/CLI.hpp>

namespace bamba::cli {

// Each verb lives in a file of its name: its function adds the subcommand with options and help, and the work as the subcommand's callback.
// A callback throws Error (exit code 1) or UsageError (2); main() prints the one line.
void AddBench(CLI::App& app);
void AddChat(CLI::App& app);
void AddCompletion(CLI::App& app);
void AddConvert(CLI::App& app);
void AddEval(CLI::App& app);
void AddInfo(CLI::App& app);
void AddManual(CLI::App& app);
void AddRun(CLI::App& app);
void AddTokenize(CLI::App& app);
void AddVerify(CLI::App& app);

}  // namespace bamba::cli
