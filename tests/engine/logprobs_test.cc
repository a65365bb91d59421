#include "engine/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace bamba {
namespace {

std::vector<float> RandomLogits(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> logits(n);
  for (float& x : logits) x = static_cast<float>(static_cast<int64_t>(random() % 4001) - 2000) / 100;  // with many equals
  return logits;
}

long double Reference(const std::vector<float>& logits) {
  long double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<long double>(x));
  return std::log(sum);
}

// The sum of n terms, each within 2^−51, in lanes: well within n/16 + 16 roundings, a relative error that the logarithm makes an absolute one. Then roundings
// of numbers below 64.
TEST(Logprobs, AreThoseOfTheSoftmax) {
  for (size_t n : {1u, 2u, 15u, 16u, 17u, 1000u, 50000u}) {
    const auto logits = RandomLogits(n, n);
    const long double lse = Reference(logits);
    const double bound = static_cast<double>(n / 16 + 20) * 0x1p-52 + 64 * 0x1p-52;
    EXPECT_NEAR(LogSumExp(logits), static_cast<double>(lse), bound) << n;
    for (size_t id : {size_t{0}, n / 2, n - 1}) {
      const auto due = static_cast<double>(logits[id] - lse);
      EXPECT_NEAR(Logprobs(logits, static_cast<int32_t>(id), 0).token.logprob, due, bound) << n;
    }
  }
}

TEST(Logprobs, TopIsTheSortedFront) {
  const auto logits = RandomLogits(3000, 5);
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
  for (size_t n : {0u, 1u, 5u, 200u, 3000u, 4000u}) {
    const auto result = Logprobs(logits, 9, static_cast<int64_t>(n));
    ASSERT_EQ(result.top.size(), std::min<size_t>(n, 3000));
    for (size_t i = 0; i < result.top.size(); i++) {
      ASSERT_EQ(result.top[i].id, order[i]) << i << " of " << n;
      ASSERT_EQ(result.top[i].logprob, Logprobs(logits, order[i], 0).token.logprob);
    }
  }
}

// A token of probability 1 − 4·10⁻¹⁸ has log probability 0, not the rounding of a large sum; hopeless ones keep their distance.
TEST(Logprobs, ExtremeLogits) {
  EXPECT_EQ(Logprobs(std::vector<float>{1e6f, 1e6f - 40}, 0, 0).token.logprob, 0);
  EXPECT_EQ(Logprobs(std::vector<float>{3e38f, -3e38f}, 1, 0).token.logprob, -2.0 * 3e38f);
  EXPECT_EQ(Logprobs(std::vector<float>{5}, 0, 1).top[0].logprob, 0);
  EXPECT_NEAR(Logprobs(std::vector<float>{7, 7}, 1, 0).token.logprob, -0.69314718055994531, 1e-16);
}

// The same bits on every machine: made once, and never to change.
TEST(Logprobs, Pinned) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); i++) logits[i] = static_cast<float>(i * 2654435761u % 4096) / 256 - 8;
  EXPECT_EQ(LogSumExp(logits), 0x1.b7ee7e0547fd7p+3);
  EXPECT_EQ(Logprobs(logits, 77, 0).token.logprob, -0x1.704e7e0547fd7p+3);
}

}  // namespace
}  // namespace bamba
