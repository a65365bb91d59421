#include "cli/prompts.h"

#include <cstdio>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/terminal.h"

namespace bamba::cli {
namespace {

// A file's or a pipe's text ends with a line feed because editors and `echo` put one there, not because the prompt does.
std::string WithoutLastLineFeed(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

}  // namespace

std::vector<std::string> Lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.push_back(WithoutLastLineFeed(std::string(text.substr(0, end))));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

void PromptFlags::AddTo(CLI::App& verb) {
  const auto add = [&](const char* names, std::vector<std::string>& values, const char* help, const char* type) {
    return verb.add_option(names, values, help)->type_name(type)->allow_extra_args(false)->take_all();
  };
  verb_ = &verb;
  text_ = add("-p,--prompt", texts_, "The text to continue; may be empty, and given several times for several texts", "TEXT");
  file_ = add("-f,--file", files_, "The file that holds it, without its last line feed; - or no flag at all: standard input", "FILE");
  lines_ = add("--prompts", line_files_, "A file with a prompt in each line", "FILE");
}

std::vector<std::string> PromptFlags::Read() const {
  std::vector<std::string> prompts;
  size_t text = 0, file = 0, lines = 0;
  for (const CLI::Option* option : verb_->parse_order()) {
    if (option == text_) prompts.push_back(texts_[text++]);
    if (option == file_) prompts.push_back(WithoutLastLineFeed(ReadFile(files_[file++])));
    if (option == lines_) {
      const std::string& name = line_files_[lines++];
      const std::vector<std::string> more = Lines(ReadFile(name));
      if (more.empty()) throw Error("{}: is empty; expected a prompt in each line", name);
      prompts.insert(prompts.end(), more.begin(), more.end());
    }
  }
  if (!prompts.empty()) return prompts;
  if (IsTerminal(kStandardInput)) std::fputs("The prompt, then Ctrl-D:\n", stderr);
  return {WithoutLastLineFeed(ReadFile("-"))};
}

}  // namespace bamba::cli
