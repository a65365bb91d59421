#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/error.h"
#include "base/portable_math.h"

namespace bamba {
namespace {

// A token that is e^−42 ≈ 2^−60 times as likely as the best is never drawn: with any vocabulary its share is below the resolution of the draw.
constexpr double kNegligible = -42;

constexpr double kNever = -std::numeric_limits<double>::infinity();

void CheckRange(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) throw Error("{} is {}; expected a number from {} to {}", name, value, low, high);
}

// Moves those that stay to the front, in their order.
template <typename Candidate, typename Predicate>
std::span<Candidate> Without(std::span<Candidate> candidates, const Predicate& gone) {
  return candidates.first(static_cast<size_t>(std::remove_if(candidates.begin(), candidates.end(), gone) - candidates.begin()));
}

// The candidates of the smallest `key` (at least 0; equal ones by id), as many as it takes for their `measure` to sum up to `due`; all where they don't. Sorts
// only those around the border: the others fall into buckets by key, whose sums tell where the border is.
template <typename Candidate, typename Key, typename Measure>
std::span<Candidate> Smallest(std::span<Candidate> candidates, std::vector<Candidate>& border, std::vector<double>& sums, double due, const Key& key,
                              const Measure& measure) {
  constexpr size_t kBuckets = 2048;
  double largest = 0;
  for (const auto& c : candidates) largest = std::max(largest, key(c));
  const double scale = largest > 1e-300 ? (kBuckets - 1) / largest : 0;  // finite; where all keys are as good as equal, one bucket does
  const auto bucket = [&](const auto& c) { return static_cast<size_t>(key(c) * scale); };

  sums.assign(kBuckets, 0);
  for (const auto& c : candidates) sums[bucket(c)] += measure(c);
  double sum = 0;
  size_t last = 0;
  while (last < kBuckets && (sums[last] == 0 || sum + sums[last] < due)) sum += sums[last++];
  if (last == kBuckets) return candidates;

  border.clear();
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(border), [&](const auto& c) { return bucket(c) == last; });
  const auto before = [&](const auto& a, const auto& b) { return key(a) != key(b) ? key(a) < key(b) : a.id < b.id; };
  std::sort(border.begin(), border.end(), before);
  auto end = border.begin();
  while (end + 1 != border.end() && (sum += measure(*end)) < due) ++end;
  return Without(candidates, [&](const auto& c) { return before(*end, c); });
}

}  // namespace

void Sampling::Validate() const {
  for (const auto& [id, bias] : logit_bias)
    if (bias != kNever && !(bias >= -100 && bias <= 100))
      throw Error("logit_bias of token {} is {}; expected a number from -100 to 100, or -inf for never", id, bias);
  if (!(repetition_penalty > 0 && repetition_penalty <= 100))
    throw Error("repetition_penalty is {}; expected a number above 0 and at most 100 (1 is none)", repetition_penalty);
  CheckRange("presence_penalty", presence_penalty, -2, 2);
  CheckRange("frequency_penalty", frequency_penalty, -2, 2);
  if (!(temperature >= 0) || !std::isfinite(temperature)) throw Error("temperature is {}; expected a number of at least 0 (0 is greedy)", temperature);
  if (top_k < 0) throw Error("top_k is {}; expected at least 0 (0 keeps all tokens)", top_k);
  if (!(top_p > 0 && top_p <= 1)) throw Error("top_p is {}; expected a number above 0 and at most 1", top_p);
  CheckRange("min_p", min_p, 0, 1);
  if (!(typical_p > 0 && typical_p <= 1)) throw Error("typical_p is {}; expected a number above 0 and at most 1", typical_p);
}

void Sampling::ValidateIds(int64_t vocab, std::span<const int32_t> never) const {
  std::vector<int32_t> forbidden(never.begin(), never.end());
  std::erase_if(forbidden, [&](int32_t id) { return id < 0 || id >= vocab; });
  for (const auto& [id, bias] : logit_bias) {
    if (id < 0 || id >= vocab) throw Error("logit_bias names token {}; the model's ids are 0 to {}", id, vocab - 1);
    if (bias == kNever) forbidden.push_back(id);
  }
  std::sort(forbidden.begin(), forbidden.end());
  if (std::unique(forbidden.begin(), forbidden.end()) - forbidden.begin() < vocab) return;
  throw Error("logit_bias{} forbids all {} tokens; leave one to choose", never.empty() ? "" : " together with min_tokens", vocab);
}

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> x, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xd2511f53} * x[0], b = uint64_t{0xcd9e8d57} * x[2];
    x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(b), static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9e3779b9, key[1] += 0xbb67ae85;
  }
  return x;
}

Sampler::Sampler(const Sampling& sampling, std::span<const int32_t> prompt, int64_t distinct) : sampling_(sampling) {
  const auto by_id = [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; };
  if (sampling.repetition_penalty == 1) prompt = {};
  edits_.reserve(sampling.logit_bias.size() + prompt.size() + (counts() ? static_cast<size_t>(distinct) : 0));
  for (const auto& [id, bias] : sampling.logit_bias) edits_.push_back({id, -1, bias});
  for (int32_t id : prompt) edits_.push_back({id, 0, 0});
  std::sort(edits_.begin(), edits_.end(), by_id);
  size_t n = 0;
  for (const LogitEdit& edit : edits_) {
    if (n == 0 || edits_[n - 1].id != edit.id)
      edits_[n++] = edit;
    else
      edits_[n - 1].bias += edit.bias, edits_[n - 1].output = std::max(edits_[n - 1].output, edit.output);
  }
  edits_.resize(n);
}

LogitEdit& Sampler::Find(int32_t id) {
  const auto at = std::lower_bound(edits_.begin(), edits_.end(), id, [](const LogitEdit& edit, int32_t sought) { return edit.id < sought; });
  return at != edits_.end() && at->id == id ? *at : *edits_.insert(at, {id, -1, 0});
}

void Sampler::Count(int32_t token) {
  if (!counts()) return;
  LogitEdit& edit = Find(token);
  edit.output = std::max(edit.output, 0) + 1;
}

// The logits with bias and penalties.
std::span<const float> Sampler::Adjust(const Choice& choice, std::span<const LogitEdit> edits, int32_t awaited, std::span<const float> logits,
                                       SamplerSpace& space) {
  if (edits.empty()) return logits;
  std::vector<float>& adjusted = space.logits_;
  adjusted.assign(logits.begin(), logits.end());
  bool known = choice.awaited < 0;
  for (LogitEdit edit : edits) {
    if (choice.awaited >= 0 && edit.id == awaited) edit.output = std::max(edit.output, 0) + 1, known = true;
    const auto i = static_cast<size_t>(edit.id);
    if (i < adjusted.size()) adjusted[i] = Edited(logits[i], edit, choice);
  }
  if (!known) adjusted[static_cast<size_t>(awaited)] = Edited(logits[static_cast<size_t>(awaited)], {awaited, 1, 0}, choice);
  return adjusted;
}

double Sampler::Uniform(uint64_t step) const {
  const auto bits = Philox({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0},
                           {static_cast<uint32_t>(sampling_.seed), static_cast<uint32_t>(sampling_.seed >> 32)});
  return static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1p-53;
}

// The exponentials piece by piece, each piece side by side in vectors.
void Sampler::Weigh(std::span<SamplerSpace::Candidate> candidates) {
  constexpr size_t kPiece = 256;
  double e[kPiece];
  for (; !candidates.empty(); candidates = candidates.subspan(std::min(kPiece, candidates.size()))) {
    const size_t n = std::min(kPiece, candidates.size());
    for (size_t i = 0; i < n; i++) e[i] = candidates[i].x;
    for (size_t i = 0; i < n; i++) e[i] = Exp(e[i]);
    for (size_t i = 0; i < n; i++) candidates[i].weight = e[i];
  }
}

int32_t Sampler::Draw(const Choice& choice, std::span<const float> logits, SamplerSpace& space) {
  if (choice.temperature == 0) return static_cast<int32_t>(std::find(logits.begin(), logits.end(), Max(logits)) - logits.begin());
  if (space.candidates_.size() < logits.size()) space.candidates_.resize(logits.size()), space.border_.reserve(logits.size());
  size_t n = 0;
  const double best = Max(logits);
  for (size_t i = 0; i < logits.size(); i++) {
    const double x = (logits[i] - best) / choice.temperature;
    space.candidates_[n] = {static_cast<int32_t>(i), x, 0};
    n += x >= kNegligible;
  }
  std::span<SamplerSpace::Candidate> candidates(space.candidates_.data(), n);

  const auto weight_of = [](const auto& c) { return c.weight; };
  const auto total = [&] {
    double sum = 0;
    for (const auto& c : candidates) sum += c.weight;
    return sum;
  };
  const auto keep = [&](double due, const auto& key, const auto& measure) { candidates = Smallest(candidates, space.border_, space.sums_, due, key, measure); };
  const auto unlikeliness = [](const auto& c) { return -c.x; };
  if (choice.top_k > 0) keep(static_cast<double>(choice.top_k), unlikeliness, [](const auto&) { return 1.0; });
  Weigh(candidates);
  if (choice.top_p < 1) keep(choice.top_p * total(), unlikeliness, weight_of);
  if (choice.min_p > 0) candidates = Without(candidates, [&](const auto& c) { return c.weight < choice.min_p; });
  if (choice.typical_p < 1) {
    // −log p = log Σ weights − x, so how far it is from its mean is how far x is from its own.
    double sum = 0, mean = 0;
    for (const auto& c : candidates) sum += c.weight, mean += c.weight * c.x;
    mean /= sum;
    keep(
        choice.typical_p * sum, [&](const auto& c) { return std::abs(c.x - mean); }, weight_of);
  }

  double left = choice.uniform * total();
  for (const auto& c : candidates) {
    left -= c.weight;
    if (left < 0) return c.id;
  }
  return candidates.back().id;  // rounding of the sum
}

int32_t Sampler::Sample(std::span<const float> logits, uint64_t step, SamplerSpace& space, std::span<const int32_t> never) {
  CHECK(!logits.empty());
  space.edits_.clear(), space.edits_.reserve(edits_.capacity() + never.size());
  const Choice choice = ChoiceAt(step, never, -1, space.edits_);
  const std::span<const float> adjusted = Adjust(choice, space.edits_, -1, logits, space);
  CHECK_MSG(Max(adjusted) > kNever, "no token is left to choose of {}", logits.size());
  const int32_t chosen = Draw(choice, adjusted, space);
  Count(chosen);
  return chosen;
}

bool Sampler::HasChoices() const {
  const double temperature = sampling_.temperature;
  return temperature == 0 || (sampling_.top_k <= kMostTopK && temperature >= 1e-30 && temperature <= 1e30);
}

Choice Sampler::ChoiceAt(uint64_t step, std::span<const int32_t> never, int64_t awaited, std::vector<LogitEdit>& edits) const {
  const auto first = std::ssize(edits);
  edits.insert(edits.end(), edits_.begin(), edits_.end());
  for (int32_t id : never) {
    const auto same = std::find_if(edits.begin() + first, edits.end(), [&](const LogitEdit& edit) { return edit.id == id; });
    if (same != edits.end())
      same->bias = kNever;
    else
      edits.push_back({id, -1, kNever});
  }
  if (!counts()) awaited = -1;
  if (awaited >= 0) edits.push_back({-1, -1, 0});
  return {.temperature = sampling_.temperature,
          .top_p = sampling_.top_p,
          .min_p = sampling_.min_p,
          .typical_p = sampling_.typical_p,
          .uniform = sampling_.temperature > 0 ? Uniform(step) : 0,
          .top_k = sampling_.top_k,
          .repetition_penalty = sampling_.repetition_penalty,
          .presence_penalty = sampling_.presence_penalty,
          .frequency_penalty = sampling_.frequency_penalty,
          .first_edit = first,
          .edits = std::ssize(edits) - first,
          .awaited = awaited};
}

int32_t Sampler::Choose(const Choice& choice, std::span<const LogitEdit> edits, int32_t awaited, std::span<const float> logits, SamplerSpace& space) {
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) return -1;
  return Draw(choice, Adjust(choice, edits, awaited, logits, space), space);
}

}  // namespace bamba
