#include "cli/history_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"

namespace bamba::cli {
namespace {

namespace fs = std::filesystem;

std::string Escaped(const std::string& text) {
  std::string line;
  for (char c : text) {
    if (c == '\n' || c == '\\') line += '\\';
    line += c == '\n' ? 'n' : c;
  }
  return line;
}

std::string Unescaped(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); i++) {
    const bool escape = line[i] == '\\' && i + 1 < line.size();
    if (escape) i++;
    text += escape && line[i] == 'n' ? '\n' : line[i];
  }
  return text;
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (end > at) lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

}  // namespace

std::string HistoryPath() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  // The standard wants relative paths ignored.
  if (state && fs::path(state).is_absolute()) return (fs::path(state) / "bamba/chat_history").string();
  return home && *home ? (fs::path(home) / ".local/state/bamba/chat_history").string() : "";
}

HistoryFile::HistoryFile(std::string path, std::function<void(const std::string&)> warn) : path_(std::move(path)), warn_(std::move(warn)) {
  if (path_.empty()) warn_("what is typed is not kept for the next chat: neither XDG_STATE_HOME nor HOME says where");
}

// The first fault is the last: one warning, then silence.
template <typename Work>
void HistoryFile::Try(const Work& work) {
  if (path_.empty()) return;
  try {
    work();
  } catch (const std::exception& e) {
    warn_(fmt::format("{}; what is typed is not kept for the next chat", e.what()));
    path_.clear();
  }
}

std::vector<std::string> HistoryFile::Load(size_t most) {
  std::vector<std::string> entries;
  Try([&] {
    std::error_code fault;
    fs::create_directories(fs::path(path_).parent_path(), fault);
    if (fault) throw Error("{}: cannot be created: {}", fs::path(path_).parent_path().string(), fault.message());
    // Who keeps no history has a link to /dev/null here: that is written to, and left as it is.
    if (!MakePrivate(path_)) return;
    std::vector<std::string> lines = Lines(ReadFile(path_));
    const bool long_file = lines.size() > 2 * most;
    if (lines.size() > most) lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(most));
    for (const std::string& line : lines) entries.push_back(Unescaped(line));
    if (!long_file) return;
    FileWriter shorter(path_);
    for (const std::string& line : lines) shorter.Write(line + "\n");
    shorter.Commit();
  });
  return entries;
}

void HistoryFile::Add(const std::string& entry) {
  Try([&] {
    std::ofstream file(path_, std::ios::app | std::ios::binary);
    const std::string line = Escaped(entry) + "\n";
    if (!file.write(line.data(), static_cast<std::streamsize>(line.size())).flush()) throw Error("{}: cannot be written: {}", path_, std::strerror(errno));
  });
}

}  // namespace bamba::cli
