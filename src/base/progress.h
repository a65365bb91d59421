#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace bamba {

// A line on standard error that shows how far a long work is: bar, percentage, rate, remaining time. Silent where that is no terminal, and for work that
// is over before a second has passed. Erased at the end.
class Progress {
 public:
  // `what` names the work, `unit` what is counted ("tok", "bytes"; bytes are shown in human units).
  Progress(std::string what, int64_t total, std::string unit);
  ~Progress();
  void Advance(int64_t done);                               // so far, of total
  void Note(std::string note) { note_ = std::move(note); }  // shown at the end of the line, such as a running result

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_, unit_, note_;
  int64_t total_;
  Clock::time_point start_ = Clock::now(), drawn_ = start_;
  bool terminal_, visible_ = false;
};

}  // namespace bamba
