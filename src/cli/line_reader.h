#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bamba::cli {

// Lines of standard input, as someone types them or a pipe gives them.
class LineReader {
 public:
  enum class Outcome { kLine, kInterrupted, kEnd };  // kInterrupted: a signal that base/terminal.h catches came

  virtual ~LineReader() = default;
  // The next line, without its line feed. A line that was pasted into an editor may hold line feeds of its own.
  virtual Outcome Read(const std::string& prompt, std::string& line) = 0;
  // What the arrow keys bring back, the newest last.
  virtual void Remember(const std::string&) {}
};

// Editing with libedit, where standard input and standard error are a terminal that can move its cursor; otherwise lines as they come, with the prompt on
// standard error if a terminal asks for them.
std::unique_ptr<LineReader> OpenLineReader();

// The same without editing.
std::unique_ptr<LineReader> PlainLineReader(bool show_prompt);
// With it: line_editor.cc.
std::unique_ptr<LineReader> EditingLineReader();

// Bytes of standard input.
class InputBytes {
 public:
  static constexpr int kEnd = -1, kInterrupted = -2;
  explicit InputBytes(std::function<void()> resumed) : resumed_(std::move(resumed)) {}  // as base/terminal.h has it
  int Next();                                                                           // 0 to 255, or one of these
  void PutBack() { at_--; }                                                             // the byte that Next just gave

 private:
  std::function<void()> resumed_;
  std::vector<char> buffer_;
  size_t at_ = 0;
};

}  // namespace bamba::cli
