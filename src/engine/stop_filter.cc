#include "engine/stop_filter.h"

#include <algorithm>
#include <utility>

namespace bamba {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopFilter::Push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;

  // Of several stop strings the one that ends first counts, as it would if the text came byte by byte; of those that end together, the longest.
  size_t end = std::string::npos, begin = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    if (at + stop.size() < end || (at + stop.size() == end && at < begin)) begin = at, end = at + stop.size();
  }
  if (end != std::string::npos) {
    stopped_ = true;
    held_.resize(begin);
    return std::exchange(held_, {});
  }

  size_t hold = 0;  // the longest end of the text with which a stop string begins
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > hold; n--)
      if (held_.ends_with(std::string_view(stop).substr(0, n))) hold = n;
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::Finish() { return std::exchange(held_, {}); }

}  // namespace bamba
