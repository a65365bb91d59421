#include <histedit.h>

#include <clocale>
#include <cstdio>
#include <string>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/line_reader.h"
#include "text/unicode.h"

namespace bamba::cli {
namespace {

constexpr int kRemembered = 1000;

// A terminal that knows this marks what is pasted, so that a pasted line feed ends no line; another one ignores it.
constexpr std::string_view kMarkPaste = "\033[?2004h", kMarkNoPaste = "\033[?2004l", kPasteEnd = "\033[201~";

class Editor : public LineReader {
 public:
  Editor() {
    // libedit asks the C library what a character is and how wide.
    if (!std::setlocale(LC_CTYPE, "C.UTF-8")) std::setlocale(LC_CTYPE, "");
    editor_ = el_init("bamba", stdin, stderr, stderr);
    history_ = history_init();
    if (!editor_ || !history_) throw Error("the terminal cannot be used for line editing; set TERM=dumb to do without");
    HistEvent event;
    history(history_, &event, H_SETSIZE, kRemembered);
    history(history_, &event, H_SETUNIQUE, 1);
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_SIGNAL, 0);
    el_set(editor_, EL_PROMPT, Prompt);
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_GETCFN, NextCharacter);
    el_set(editor_, EL_ADDFN, "bamba-paste", "Insert pasted text", Paste);
    el_set(editor_, EL_BIND, "\\e[200~", "bamba-paste", nullptr);
    el_source(editor_, nullptr);  // ~/.editrc, where people keep their keys
  }

  ~Editor() override {
    if (history_) history_end(history_);
    if (editor_) el_end(editor_);
  }
  Editor(const Editor&) = delete;
  Editor& operator=(const Editor&) = delete;

  Outcome Read(const std::string& prompt, std::string& line) override {
    prompt_ = prompt;
    WriteAll(kStandardError, kMarkPaste);
    int length = 0;
    const char* text = el_gets(editor_, &length);
    WriteAll(kStandardError, kMarkNoPaste);
    if (text == nullptr || length <= 0) return InterruptSignal() ? Outcome::kInterrupted : Outcome::kEnd;
    line.assign(text, static_cast<size_t>(length));
    if (line.ends_with('\n')) line.pop_back();
    return Outcome::kLine;
  }

  void Remember(const std::string& text) override {
    HistEvent event;
    history(history_, &event, H_ENTER, text.c_str());
  }

 private:
  static Editor& Of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Editor*>(self);
  }

  static char* Prompt(EditLine* editor) { return Of(editor).prompt_.data(); }

  // What libedit's own function does with a signal depends on the signal; this one ends the line.
  static int NextCharacter(EditLine* editor, wchar_t* character) {
    Editor& self = Of(editor);
    const int byte = self.input_.Next();
    el_resize(editor);  // the terminal's size may have changed while nobody typed
    if (byte < 0) return -1;
    std::string bytes(1, static_cast<char>(byte));
    Utf8Char decoded = FirstChar(bytes);
    for (int next; decoded.cut && (next = self.input_.Next()) >= 0; decoded = FirstChar(bytes)) bytes += static_cast<char>(next);
    if (decoded.length < bytes.size()) self.input_.PutBack();  // it was no part of the character
    *character = static_cast<wchar_t>(decoded.code_point);
    return 1;
  }

  static unsigned char Paste(EditLine* editor, int) {
    Editor& self = Of(editor);
    std::string bytes;
    while (!bytes.ends_with(kPasteEnd)) {
      const int byte = self.input_.Next();
      if (byte < 0) return CC_EOF;
      bytes += static_cast<char>(byte == '\r' ? '\n' : byte);  // terminals send what Enter sends
    }
    bytes.resize(bytes.size() - kPasteEnd.size());
    std::string text;
    AppendLossy(bytes, text);
    return text.empty() || el_insertstr(editor, text.c_str()) == 0 ? CC_REFRESH : CC_ERROR;
  }

  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  InputBytes input_{[this] {
    el_set(editor_, EL_PREP_TERM, 0);
    el_set(editor_, EL_PREP_TERM, 1);
    el_set(editor_, EL_REFRESH);
  }};
  std::string prompt_;
};

}  // namespace

std::unique_ptr<LineReader> EditingLineReader() { return std::make_unique<Editor>(); }

}  // namespace bamba::cli
