#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace bamba::cli {

// The flags that give prompts, one or many, in the order in which they were typed.
class PromptFlags {
 public:
  // Adds -p, -f and --prompts to a verb. This must live until the command line is parsed.
  void AddTo(CLI::App& verb);

  // Reads files; standard input where no flag was given. Throws Error where a file can't be read or holds no prompt.
  std::vector<std::string> Read() const;

 private:
  const CLI::App* verb_ = nullptr;
  const CLI::Option *text_ = nullptr, *file_ = nullptr, *lines_ = nullptr;
  std::vector<std::string> texts_, files_, line_files_;
};

// The lines of a text, without their ends (LF or CRLF); a last line needs none.
std::vector<std::string> Lines(std::string_view text);

}  // namespace bamba::cli
