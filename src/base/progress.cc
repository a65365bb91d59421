#include "base/progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include "base/terminal.h"
#include "base/units.h"

namespace bamba {

Progress::Progress(std::string what, int64_t total, std::string unit)
    : what_(std::move(what)), unit_(std::move(unit)), total_(std::max<int64_t>(total, 1)), terminal_(IsTerminal(2)) {}

Progress::~Progress() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void Progress::Advance(int64_t done) {
  if (!terminal_) return;
  auto now = Clock::now();
  if (now - start_ < std::chrono::seconds(1) || now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  visible_ = true;
  double seconds = std::chrono::duration<double>(now - start_).count(), part = static_cast<double>(done) / static_cast<double>(total_);
  double rate = static_cast<double>(done) / seconds, left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0;
  std::string speed = unit_ == "bytes" ? HumanBytes(rate) : HumanRate(rate) + " " + unit_;
  std::string tail = fmt::format(" {:3.0f} %  {}/s  {} left  {}", part * 100, speed, HumanSeconds(left), note_);
  int width = std::clamp(TerminalColumns() - static_cast<int>(what_.size() + tail.size()) - 4, 0, 40);
  int full = static_cast<int>(part * width);
  std::string line =
      fmt::format("\r{} [{}{}]{}\x1b[K", what_, std::string(static_cast<size_t>(full), '='), std::string(static_cast<size_t>(width - full), ' '), tail);
  std::fputs(line.c_str(), stderr);
}

}  // namespace bamba
