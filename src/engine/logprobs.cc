#include "engine/logprobs.h"

#include <algorithm>

#include "base/check.h"
#include "base/portable_math.h"

namespace bamba {
namespace {

// Log Σ e^(logit − best), which is at least 0.
double LogSum(std::span<const float> logits, double best) {
  constexpr size_t kLanes = 16;  // sums side by side; their number fixes the order
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    double e[kLanes];
    for (size_t lane = 0; lane < kLanes; lane++) e[lane] = Exp(logits[i + lane] - best);
    for (size_t lane = 0; lane < kLanes; lane++) lanes[lane] += e[lane];
  }
  for (size_t lane = 0; i + lane < logits.size(); lane++) lanes[lane] += Exp(logits[i + lane] - best);
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return Log(sum);
}

}  // namespace

double LogSumExp(std::span<const float> logits) {
  const double best = Max(logits);
  return best + LogSum(logits, best);
}

TokenLogprobs Logprobs(std::span<const float> logits, int32_t id, int64_t top) {
  CHECK_MSG(id >= 0 && static_cast<size_t>(id) < logits.size(), "token {} of {}", id, logits.size());
  const double best = Max(logits), log_sum = LogSum(logits, best);
  // (logit − best) is exact or nearly so; adding the two large numbers first would cost the digits of a likely token.
  const auto entry = [&](int32_t i) { return Logprob{i, (logits[static_cast<size_t>(i)] - best) - log_sum}; };
  TokenLogprobs result{.token = entry(id), .top = {}};

  // A heap of the best so far, the worst of them at its front.
  std::vector<Logprob>& heap = result.top;
  const auto n = static_cast<size_t>(std::clamp<int64_t>(top, 0, static_cast<int64_t>(logits.size())));
  heap.reserve(n);
  const auto better = [](const Logprob& a, const Logprob& b) { return a.logprob != b.logprob ? a.logprob > b.logprob : a.id < b.id; };
  for (size_t i = 0; n > 0 && i < logits.size(); i++) {
    if (heap.size() == n && logits[i] <= logits[static_cast<size_t>(heap.front().id)]) continue;
    if (heap.size() == n) std::pop_heap(heap.begin(), heap.end(), better), heap.pop_back();
    heap.push_back(entry(static_cast<int32_t>(i)));
    std::push_heap(heap.begin(), heap.end(), better);
  }
  std::sort_heap(heap.begin(), heap.end(), better);
  return result;
}

}  // namespace bamba
