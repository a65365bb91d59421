#pragma once

#include <functional>
#include <string>
#include <vector>

namespace bamba::cli {

// $XDG_STATE_HOME/bamba/chat_history, or the same below ~/.local/state; empty where neither variable says where that is.
std::string HistoryPath();

// What was typed in earlier chats: a file of one line each, in which "\n" and "\\" stand for a line feed and a backslash. Each entry is added at once, so that
// none is lost with the process and chats at the same time keep each other's. What is typed may be private: only its owner can read the file.
class HistoryFile {
 public:
  // Without a place, or where the file can't be read or written, `warn` gets one line, and nothing is kept from then on.
  HistoryFile(std::string path, std::function<void(const std::string&)> warn);

  // The newest ones, at most this many, oldest first. The file is cut to them where it has grown to twice as many.
  std::vector<std::string> Load(size_t most);
  void Add(const std::string& entry);

 private:
  template <typename Work>
  void Try(const Work& work);

  std::string path_;
  std::function<void(const std::string&)> warn_;
};

}  // namespace bamba::cli
