#include "cli/line_reader.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/terminal.h"

namespace bamba::cli {
namespace {

class PlainReader : public LineReader {
 public:
  explicit PlainReader(bool show_prompt) : show_prompt_(show_prompt) {}

  Outcome Read(const std::string& prompt, std::string& line) override {
    if (show_prompt_) WriteAll(kStandardError, prompt);
    line.clear();
    for (int byte; (byte = input_.Next()) != '\n'; line += static_cast<char>(byte)) {
      if (byte == InputBytes::kInterrupted) return Outcome::kInterrupted;
      if (byte == InputBytes::kEnd && line.empty()) return Outcome::kEnd;
      if (byte == InputBytes::kEnd) break;
    }
    if (line.ends_with('\r')) line.pop_back();
    return Outcome::kLine;
  }

 private:
  InputBytes input_{[] {}};
  bool show_prompt_;
};

}  // namespace

int InputBytes::Next() {
  if (at_ == buffer_.size()) {
    if (!WaitForInput(kStandardInput, resumed_)) return kInterrupted;
    buffer_.resize(4096);
    buffer_.resize(ReadSome(kStandardInput, buffer_.data(), buffer_.size()));
    at_ = 0;
    if (buffer_.empty()) return kEnd;
  }
  return static_cast<unsigned char>(buffer_[at_++]);
}

std::unique_ptr<LineReader> PlainLineReader(bool show_prompt) { return std::make_unique<PlainReader>(show_prompt); }

std::unique_ptr<LineReader> OpenLineReader() {
  if (!IsTerminal(kStandardInput)) return PlainLineReader(false);
  const char* term = std::getenv("TERM");
  const std::string_view kind = term ? term : "";
  if (!IsTerminal(kStandardError) || kind.empty() || kind == "dumb") return PlainLineReader(true);
  return EditingLineReader();
}

}  // namespace bamba::cli
