#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "base/error.h"

namespace bamba {
namespace {

// The generator's authors publish these (Random123, known-answer tests): counter, key, output.
TEST(Philox, KnownAnswers) {
  using Bits = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Bits{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Bits{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}), (Bits{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Exp, WithinItsBound) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200000; i++) {
    const double x = -708 * std::pow(std::uniform_real_distribution<double>()(random), i % 2 ? 1 : 8);
    const double due = static_cast<double>(std::exp(static_cast<long double>(x)));
    ASSERT_LE(std::abs(Exp(x) - due), 0x1p-51 * due) << x;
  }
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(-0.0), 1);
  EXPECT_EQ(Exp(-709), 0);
  EXPECT_EQ(Exp(-std::numeric_limits<double>::infinity()), 0);
}

std::vector<float> RandomLogits(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(Sampler({}).Sample(std::vector<float>{1, 5, 2, 5}, 0), 1);
  EXPECT_EQ(Sampler({}).Sample(std::vector<float>{-7}, 9), 0);
}

TEST(Sampler, DependsOnSeedAndStepOnly) {
  const auto logits = RandomLogits(1000, 1), other = RandomLogits(1000, 2);
  Sampler a({.temperature = 1, .seed = 7}), b({.temperature = 1, .seed = 7}), c({.temperature = 1, .seed = 8});
  int differ = 0;
  for (uint64_t step = 0; step < 100; step++) {
    b.Sample(other, step);
    const int32_t chosen = a.Sample(logits, step);
    EXPECT_EQ(chosen, b.Sample(logits, step));
    differ += chosen != c.Sample(logits, step);
  }
  EXPECT_GT(differ, 50);
}

// Drawn frequencies against softmax(logits / temperature): each count is binomial; six standard deviations leave a chance of about 2e-9 each.
TEST(Sampler, DrawsFromTheSoftmax) {
  const std::vector<float> logits = {0, 1, -1, 2.5f, 0.25f};
  const int draws = 200000;
  for (double temperature : {0.5, 1.0, 2.0}) {
    Sampler sampler({.temperature = temperature, .seed = 3});
    std::vector<int> counts(logits.size());
    for (int i = 0; i < draws; i++) counts[static_cast<size_t>(sampler.Sample(logits, static_cast<uint64_t>(i)))]++;
    double total = 0;
    for (float x : logits) total += std::exp(x / temperature);
    for (size_t i = 0; i < logits.size(); i++) {
      const double p = std::exp(logits[i] / temperature) / total;
      EXPECT_LE(std::abs(counts[i] - draws * p), 6 * std::sqrt(draws * p * (1 - p))) << "token " << i << " at " << temperature;
    }
  }
}

// Every token that is drawn in many draws from few tokens: the kept set.
std::vector<int32_t> Kept(const Sampling& sampling, const std::vector<float>& logits) {
  Sampler sampler(sampling);
  std::map<int32_t, int> seen;
  for (uint64_t step = 0; step < 20000; step++) seen[sampler.Sample(logits, step)]++;
  std::vector<int32_t> kept;
  for (auto [id, count] : seen) kept.push_back(id);
  return kept;
}

TEST(Sampler, KeepsWhatItShould) {
  // Probabilities 1/2, 1/4, 1/8, 1/8 (ids 2, 0, 1, 3).
  const std::vector<float> logits = {std::log(2.0f), 0, std::log(4.0f), 0};
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(Kept({.temperature = 1}, logits), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(Kept({.temperature = 1, .top_k = 1}, logits), (Ids{2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_k = 3}, logits), (Ids{0, 1, 2}));  // of the equal ones the lower id
  EXPECT_EQ(Kept({.temperature = 1, .top_k = 99}, logits), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 1e-9}, logits), (Ids{2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 0.45}, logits), (Ids{2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 0.55}, logits), (Ids{0, 2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 0.8}, logits), (Ids{0, 1, 2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_k = 2, .top_p = 0.7}, logits), (Ids{0, 2}));  // 2/3 of what top_k left is too little
  EXPECT_EQ(Kept({.temperature = 1, .min_p = 0.4}, logits), (Ids{0, 2}));
  EXPECT_EQ(Kept({.temperature = 1, .min_p = 1}, logits), (Ids{2}));
  EXPECT_EQ(Kept({.temperature = 100, .min_p = 0.9}, logits), (Ids{0, 1, 2, 3}));  // the temperature comes first
}

// On a large vocabulary, where only a part is sorted: top_p against a full sort.
TEST(Sampler, TopPOfALargeVocabulary) {
  for (double top_p : {0.3, 0.9, 0.999, 0.999999}) {
    const auto logits = RandomLogits(50000, 5);
    std::vector<int32_t> order(logits.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    double total = 0, sum = 0;
    for (float x : logits) total += std::exp(static_cast<double>(x));
    std::vector<bool> kept(logits.size());
    for (size_t i = 0; i < order.size() && sum < top_p * total; i++)
      kept[static_cast<size_t>(order[i])] = true, sum += std::exp(static_cast<double>(logits[static_cast<size_t>(order[i])]));
    Sampler sampler({.temperature = 1, .top_p = top_p, .seed = 1});
    for (uint64_t step = 0; step < 100; step++) ASSERT_TRUE(kept[static_cast<size_t>(sampler.Sample(logits, step))]) << top_p;
  }
}

TEST(Sampler, ExtremeLogits) {
  const std::vector<float> huge = {-3e38f, 3e38f, 0};
  EXPECT_EQ(Sampler({.temperature = 1}).Sample(huge, 0), 1);
  EXPECT_EQ(Sampler({.temperature = 5e-324}).Sample(std::vector<float>{0, 1e-30f, 0}, 0), 1);
  EXPECT_EQ(Kept({.temperature = 1e300}, huge).size(), 3u);
}

TEST(Sampling, RefusesNonsense) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (Sampling bad : {Sampling{.temperature = -1},
                       {.temperature = nan},
                       {.temperature = std::numeric_limits<double>::infinity()},
                       {.top_k = -1},
                       {.top_p = 0},
                       {.top_p = 1.1},
                       {.top_p = nan},
                       {.min_p = -0.1},
                       {.min_p = 2},
                       {.min_p = nan}})
    EXPECT_THROW(bad.Validate(), Error);
  EXPECT_NO_THROW((Sampling{.temperature = 2, .top_k = 40, .top_p = 1, .min_p = 1}.Validate()));
}

}  // namespace
}  // namespace bamba
