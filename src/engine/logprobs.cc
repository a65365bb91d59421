#include "engine/logprobs.h"

#include <algorithm>

#include "base/check.h"
#include "base/portable_math.h"

namespace bamba {
namespace {

// Σ e^(logit − best), which is at least 1.
double SumOf(std::span<const float> logits, double best) {
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
  return sum;
}

// (logit − best) is exact or nearly so; adding the two large numbers first would cost the digits of a likely token.
Logprob Entry(int32_t id, double logit, double best, double log_sum) { return {id, (logit - best) - log_sum}; }

}  // namespace

double LogSumExp(std::span<const float> logits) {
  const double best = Max(logits);
  return best + Log(SumOf(logits, best));
}

TokenLogprobs Logprobs(std::span<const float> logits, int32_t id, int64_t top) {
  CHECK_MSG(id >= 0 && static_cast<size_t>(id) < logits.size(), "token {} of {}", id, logits.size());
  const double best = Max(logits), log_sum = Log(SumOf(logits, best));
  const auto logit = [&](int32_t i) { return logits[static_cast<size_t>(i)]; };
  TokenLogprobs result{.token = Entry(id, logit(id), best, log_sum), .top = {}};

  // A heap of the best so far, the worst of them at its front.
  std::vector<Logprob>& heap = result.top;
  const auto n = static_cast<size_t>(std::clamp<int64_t>(top, 0, static_cast<int64_t>(logits.size())));
  heap.reserve(n);
  const auto better = [&](const Logprob& a, const Logprob& b) { return logit(a.id) != logit(b.id) ? logit(a.id) > logit(b.id) : a.id < b.id; };
  for (int32_t i = 0; n > 0 && i < std::ssize(logits); i++) {
    if (heap.size() == n && logit(i) <= logit(heap.front().id)) continue;
    if (heap.size() == n) std::pop_heap(heap.begin(), heap.end(), better), heap.pop_back();
    heap.push_back(Entry(i, logit(i), best, log_sum));
    std::push_heap(heap.begin(), heap.end(), better);
  }
  std::sort_heap(heap.begin(), heap.end(), better);
  return result;
}

TokenLogprobs Logprobs(const LogprobParts& parts, int32_t id, int64_t top) {
  const double log_sum = Log(parts.sum);
  TokenLogprobs result{.token = Entry(id, parts.chosen, parts.best, log_sum), .top = {}};
  for (int64_t i = 0; i < top; i++) result.top.push_back(Entry(parts.ids[i], parts.logits[i], parts.best, log_sum));
  return result;
}

}  // namespace bamba
