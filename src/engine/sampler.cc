#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "base/error.h"

namespace bamba {
namespace {

// A token that is e^−42 ≈ 2^−60 times as likely as the best is never drawn: with any vocabulary its share is below the resolution of the draw.
constexpr double kNegligible = -42;

}  // namespace

void Sampling::Validate() const {
  if (!(temperature >= 0) || !std::isfinite(temperature)) throw Error("temperature is {}; expected a number of at least 0 (0 is greedy)", temperature);
  if (top_k < 0) throw Error("top_k is {}; expected at least 0 (0 keeps all tokens)", top_k);
  if (!(top_p > 0 && top_p <= 1)) throw Error("top_p is {}; expected a number above 0 and at most 1", top_p);
  if (!(min_p >= 0 && min_p <= 1)) throw Error("min_p is {}; expected a number from 0 to 1", min_p);
}

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> x, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xd2511f53} * x[0], b = uint64_t{0xcd9e8d57} * x[2];
    x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(b), static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9e3779b9, key[1] += 0xbb67ae85;
  }
  return x;
}

double Exp(double x) {
  if (!(x >= -708)) return 0;
  // x = k ln 2 + r with |r| ≤ ln 2 / 2; the first part of ln 2 has enough trailing zeros for k times it to be exact.
  constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  const double k = std::floor(x * kLog2e + 0.5);
  const double r = (x - k * kLn2High) - k * kLn2Low;
  // Taylor: the term after r^13/13! is below 2^−58.
  double e = 0;
  for (double factor : {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0, 1 / 720.0, 1 / 120.0, 1 / 24.0,
                        1 / 6.0, 0.5, 1.0, 1.0})
    e = e * r + factor;
  return e * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52);
}

// Puts the n likeliest candidates in order at the front.
void Sampler::SortFirst(size_t n) {
  n = std::min(n, candidates_.size());
  if (n <= sorted_) return;
  const auto likelier = [](const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; };
  const auto first = candidates_.begin() + static_cast<ptrdiff_t>(sorted_), last = candidates_.begin() + static_cast<ptrdiff_t>(n);
  if (last != candidates_.end()) std::nth_element(first, last, candidates_.end(), likelier);
  std::sort(first, last, likelier);
  sorted_ = n;
}

void Sampler::KeepTopK() {
  const auto k = static_cast<size_t>(sampling_.top_k);
  if (k == 0 || k >= candidates_.size()) return;
  SortFirst(k);
  candidates_.resize(k);
}

void Sampler::KeepTopP() {
  if (sampling_.top_p >= 1) return;
  double total = 0, sum = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  for (size_t n = 0; n < candidates_.size();) {
    if (n == sorted_) SortFirst(std::max<size_t>(64, 4 * n));
    sum += candidates_[n++].weight;
    if (sum >= sampling_.top_p * total) return candidates_.resize(n);
  }
}

int32_t Sampler::Sample(std::span<const float> logits, uint64_t step) {
  CHECK(!logits.empty());
  const auto best = std::max_element(logits.begin(), logits.end());  // the first of equals
  if (sampling_.temperature == 0) return static_cast<int32_t>(best - logits.begin());

  candidates_.clear(), sorted_ = 0;
  for (size_t i = 0; i < logits.size(); i++) {
    const double x = (static_cast<double>(logits[i]) - static_cast<double>(*best)) / sampling_.temperature;
    if (x >= kNegligible) candidates_.push_back({static_cast<int32_t>(i), logits[i], Exp(x)});
  }
  KeepTopK();
  KeepTopP();
  std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < sampling_.min_p; });

  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const auto bits = Philox({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0},
                           {static_cast<uint32_t>(sampling_.seed), static_cast<uint32_t>(sampling_.seed >> 32)});
  const uint64_t uniform = (uint64_t{bits[0]} << 32 | bits[1]) >> 11;  // 53 bits
  double left = static_cast<double>(uniform) * 0x1p-53 * total;
  for (const Candidate& c : candidates_) {
    left -= c.weight;
    if (left < 0) return c.id;
  }
  return candidates_.back().id;  // rounding of the sum
}

}  // namespace bamba
