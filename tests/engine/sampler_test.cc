#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "base/error.h"
#include "base/portable_math.h"
#include "tests/engine/allocations.h"

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

TEST(Log, WithinItsBound) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (int i = 0; i < 200000; i++) {
    const double x = i % 2 ? std::exp(700 * uniform(random)) : 1 + std::pow(uniform(random), 9) / 2;  // near 1, where the result loses its size
    const double due = static_cast<double>(std::log(static_cast<long double>(x)));
    ASSERT_LE(std::abs(Log(x) - due), 0x1p-50 * std::abs(due)) << x;
  }
  EXPECT_EQ(Log(1), 0);
}

TEST(Max, FindsTheLargestWhereverItStands) {
  for (size_t n = 1; n < 70; n++)
    for (size_t at = 0; at < n; at++) {
      std::vector<float> numbers(n, -2);
      numbers[at] = -1;
      ASSERT_EQ(Max(numbers), -1) << at << " of " << n;
    }
}

std::vector<float> RandomLogits(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

int32_t Greedy(Sampler& sampler, const std::vector<float>& logits, const std::vector<int32_t>& never = {}) {
  SamplerSpace space;
  return sampler.Sample(logits, 0, space, never);
}

int32_t Once(const Sampling& sampling, const std::vector<float>& logits, uint64_t step = 0) {
  SamplerSpace space;
  return Sampler(sampling).Sample(logits, step, space);
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(Once({}, {1, 5, 2, 5}), 1);
  EXPECT_EQ(Once({}, {-7}, 9), 0);
}

// The same choices on every machine. They agree with a script in another language that sorts and sums with its library's exponential.
TEST(Sampler, PinnedChoices) {
  const auto chosen = [](const Sampling& sampling) {
    // Logits of integer arithmetic: the library's normal distribution differs from machine to machine.
    std::vector<float> logits(5000);
    for (size_t i = 0; i < logits.size(); i++) logits[i] = static_cast<float>(i * 2654435761u % 4096) / 256 - 8;
    SamplerSpace space;
    Sampler sampler(sampling, std::vector<int32_t>{1, 2, 3});
    std::vector<int32_t> ids;
    for (uint64_t step = 0; step < 6; step++) ids.push_back(sampler.Sample(logits, step, space));
    return ids;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(chosen({.temperature = 1, .seed = 1}), (Ids{4469, 3353, 1220, 3807, 1220, 794}));
  EXPECT_EQ(chosen({.temperature = 0.7, .top_k = 50, .seed = 1}), (Ids{4550, 2975, 1154, 3850, 1154, 700}));
  EXPECT_EQ(chosen({.temperature = 1, .top_p = 0.5, .seed = 2}), (Ids{2029, 350, 2587, 875, 733, 4758}));
  EXPECT_EQ(chosen({.temperature = 1.5, .min_p = 0.1, .seed = 3}), (Ids{4104, 1324, 3850, 690, 4616, 2691}));
  EXPECT_EQ(chosen({.temperature = 1, .typical_p = 0.3, .seed = 4}), (Ids{657, 4327, 4261, 340, 3731, 1286}));
  EXPECT_EQ(chosen({.repetition_penalty = 1.5, .presence_penalty = 1, .frequency_penalty = 0.5}), (Ids{175, 4271, 350, 4446, 525, 4621}));
}

TEST(Sampler, DependsOnSeedAndStepOnly) {
  const auto logits = RandomLogits(1000, 1), other = RandomLogits(1000, 2);
  Sampler a({.temperature = 1, .seed = 7}), b({.temperature = 1, .seed = 7}), c({.temperature = 1, .seed = 8});
  SamplerSpace space;
  int differ = 0;
  for (uint64_t step = 0; step < 100; step++) {
    b.Sample(other, step, space);
    const int32_t chosen = a.Sample(logits, step, space);
    EXPECT_EQ(chosen, b.Sample(logits, step, space));
    differ += chosen != c.Sample(logits, step, space);
  }
  EXPECT_GT(differ, 50);
}

// Drawn frequencies against softmax(logits / temperature): each count is binomial; six standard deviations leave a chance of about 2e-9 each.
TEST(Sampler, DrawsFromTheSoftmax) {
  const std::vector<float> logits = {0, 1, -1, 2.5f, 0.25f};
  const int draws = 200000;
  for (double temperature : {0.5, 1.0, 2.0}) {
    Sampler sampler({.temperature = temperature, .seed = 3});
    SamplerSpace space;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < draws; i++) counts[static_cast<size_t>(sampler.Sample(logits, static_cast<uint64_t>(i), space))]++;
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
  SamplerSpace space;
  std::map<int32_t, int> seen;
  for (uint64_t step = 0; step < 20000; step++) seen[sampler.Sample(logits, step, space)]++;
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

// p log p is largest at 1/e: of these probabilities (0.6, 0.3, 0.1, entropy 0.898) the second has −log p = 1.204, nearest to it, then the first (0.511).
TEST(Sampler, TypicalKeepsWhatSurprisesAsExpected) {
  const std::vector<float> logits = {std::log(6.0f), std::log(3.0f), 0};
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(Kept({.temperature = 1, .typical_p = 0.2}, logits), (Ids{1}));
  EXPECT_EQ(Kept({.temperature = 1, .typical_p = 0.31}, logits), (Ids{0, 1}));
  EXPECT_EQ(Kept({.temperature = 1, .typical_p = 0.91}, logits), (Ids{0, 1, 2}));
  EXPECT_EQ(Kept({.temperature = 1, .typical_p = 0.01}, {1, 1, 1}), (Ids{0}));
}

// Any settings on any logits against the definitions, written down without care for speed.
class Definition {
 public:
  Definition(const Sampling& s, const std::vector<float>& logits) {
    const double best = *std::max_element(logits.begin(), logits.end());
    for (size_t i = 0; i < logits.size(); i++) tokens_.push_back({static_cast<int32_t>(i), std::exp((logits[i] - best) / s.temperature)});
    Normalise();
    const auto likelier = [](const Token& a, const Token& b) { return a.p > b.p; };
    std::stable_sort(tokens_.begin(), tokens_.end(), likelier);
    if (s.top_k > 0 && static_cast<size_t>(s.top_k) < tokens_.size()) tokens_.resize(static_cast<size_t>(s.top_k));
    Normalise();
    KeepMass(s.top_p);
    const double floor = s.min_p * tokens_[0].p;
    std::erase_if(tokens_, [&](const Token& t) { return t.p < floor; });
    Normalise();
    double entropy = 0;
    for (const Token& t : tokens_) entropy -= t.p > 0 ? t.p * std::log(t.p) : 0;
    const auto typical = [&](const Token& a, const Token& b) { return std::abs(-std::log(a.p) - entropy) < std::abs(-std::log(b.p) - entropy); };
    if (s.typical_p < 1) std::stable_sort(tokens_.begin(), tokens_.end(), typical);
    KeepMass(s.typical_p);
  }

  double Probability(int32_t id) const {
    for (const Token& t : tokens_)
      if (t.id == id) return t.p;
    return 0;
  }
  size_t size() const { return tokens_.size(); }

 private:
  struct Token {
    int32_t id;
    double p;
  };
  void KeepMass(double mass) {
    double sum = 0;
    size_t n = 0;
    while (n < tokens_.size() && sum < mass) sum += tokens_[n++].p;
    tokens_.resize(n);
    Normalise();
  }
  void Normalise() {
    double total = 0;
    for (const Token& t : tokens_) total += t.p;
    for (Token& t : tokens_) t.p /= total;
  }
  std::vector<Token> tokens_;
};

TEST(Sampler, FollowsTheDefinitions) {
  std::mt19937_64 random(7);
  const auto pick = [&](std::initializer_list<double> of) { return of.begin()[random() % of.size()]; };
  SamplerSpace space;
  for (int trial = 0; trial < 120; trial++) {
    auto logits = RandomLogits(trial % 3 == 0 ? 3000 : 1 + random() % 40, random());
    const auto spread = static_cast<float>(pick({0.01, 0.3, 1, 3}));
    for (float& x : logits) x *= spread;
    const Sampling sampling{.temperature = pick({0.3, 1, 3}),
                            .top_k = static_cast<int64_t>(pick({0, 0, 1, 7, 1000})),
                            .top_p = pick({0.05, 0.5, 0.97, 1}),
                            .min_p = pick({0, 0, 0.05, 0.7}),
                            .typical_p = pick({0.1, 0.6, 0.95, 1}),
                            .seed = random()};
    const Definition due(sampling, logits);
    Sampler sampler(sampling);
    std::map<int32_t, int> counts;
    const int draws = 500;
    for (uint64_t step = 0; step < draws; step++) counts[sampler.Sample(logits, step, space)]++;
    for (auto [id, count] : counts) {
      const double p = due.Probability(id);
      ASSERT_GT(p, 0) << "token " << id << " of trial " << trial;
      // Six standard deviations, and one count for the shape of a rare token's distribution.
      ASSERT_LE(std::abs(count - draws * p), 6 * std::sqrt(draws * p) + 6) << "token " << id << " of trial " << trial;
    }
    if (due.size() < 8) {
      ASSERT_LE(counts.size(), due.size());
    }
  }
}

TEST(Sampler, BiasAddsAndForbids) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const std::vector<float> logits = {3, 2, 1, 0};
  Sampler biased({.logit_bias = {{3, 2.5}, {0, -1}, {3, 1}}});  // twice the same id: both count
  EXPECT_EQ(Greedy(biased, logits), 3);
  Sampler forbidden({.logit_bias = {{0, kNever}}});
  EXPECT_EQ(Greedy(forbidden, logits), 1);
  EXPECT_EQ(Greedy(forbidden, logits, {1, 2}), 3);
  EXPECT_EQ(Kept({.logit_bias = {{1, kNever}}, .temperature = 100}, logits), (std::vector<int32_t>{0, 2, 3}));
}

TEST(Sampler, RepetitionPenaltyCountsPromptAndOutput) {
  Sampler sampler({.repetition_penalty = 2}, std::vector<int32_t>{2, 2});
  EXPECT_EQ(Greedy(sampler, {3, 2, 5, -1}), 0);        // 5/2 < 3
  EXPECT_EQ(Greedy(sampler, {3, 2, 3, -1}), 1);        // 3/2, 2, 3/2
  EXPECT_EQ(Greedy(sampler, {-2, -3, -2, -3.5f}), 3);  // −4, −6, −4
  EXPECT_EQ(Greedy(sampler, {2, 1, 2, 0.5f}), 0);      // each halved once, however often it came
}

TEST(Sampler, PresenceAndFrequencyCountTheOutputAlone) {
  Sampler presence({.presence_penalty = 1.5}, std::vector<int32_t>{0, 0, 1});
  EXPECT_EQ(Greedy(presence, {3, 2, 0}), 0);
  EXPECT_EQ(Greedy(presence, {3, 2, 0}), 1);  // 1.5, 2
  EXPECT_EQ(Greedy(presence, {3, 2, 0}), 0);  // 1.5, 0.5
  EXPECT_EQ(Greedy(presence, {3, 2, 0}), 0);  // once is as good as three times
  Sampler frequency({.frequency_penalty = 0.75});
  std::vector<int32_t> chosen;
  for (int i = 0; i < 5; i++) chosen.push_back(Greedy(frequency, {3, 2, 0}));
  EXPECT_EQ(chosen, (std::vector<int32_t>{0, 0, 1, 0, 1}));  // 3, 2.25, 1.5 < 2, 1.5 > 1.25, 0.75 < 1.25
  Sampler wanted({.presence_penalty = -2});
  EXPECT_EQ(Greedy(wanted, {0, 1, 0}), 1);
  EXPECT_EQ(Greedy(wanted, {2.5f, 1, 0}), 1);
}

TEST(Sampler, ExtremeLogits) {
  const std::vector<float> huge = {-3e38f, 3e38f, 0};
  EXPECT_EQ(Once({.temperature = 1}, huge), 1);
  EXPECT_EQ(Once({.temperature = 5e-324}, {0, 1e-30f, 0}), 1);
  EXPECT_EQ(Kept({.temperature = 1e300}, huge).size(), 3u);
  EXPECT_EQ(Kept({.temperature = 1e300, .top_k = 2}, {1, 1 - 1e-7f, 1 - 1e-7f}).size(), 2u);  // their distances are no normal numbers
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 5e-324, .typical_p = 5e-324}, {1, 2, 3}).size(), 1u);
  Sampler divided({.repetition_penalty = 1e-3}, std::vector<int32_t>{0, 1});
  EXPECT_EQ(Greedy(divided, huge), 1);  // 3e41 is no float
}

// What a step takes of memory was taken in the first one.
TEST(Sampler, AllocatesNothingOnceItRuns) {
  const auto logits = RandomLogits(2000, 3);
  Sampler sampler({.logit_bias = {{1, 2}},
                   .repetition_penalty = 1.1,
                   .presence_penalty = 0.1,
                   .temperature = 1.5,
                   .top_k = 1500,
                   .top_p = 0.999,
                   .min_p = 1e-9,
                   .typical_p = 0.99},
                  std::vector<int32_t>{4, 5}, 2000);
  SamplerSpace space;
  sampler.Sample(logits, 0, space);
  const int64_t before = Allocations();
  for (uint64_t step = 1; step < 500; step++) sampler.Sample(logits, step, space);
  EXPECT_EQ(Allocations(), before);
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
                       {.min_p = nan},
                       {.typical_p = 0},
                       {.typical_p = 1.5},
                       {.typical_p = nan},
                       {.repetition_penalty = 0},
                       {.repetition_penalty = -1},
                       {.repetition_penalty = 101},
                       {.repetition_penalty = nan},
                       {.presence_penalty = 2.1},
                       {.presence_penalty = nan},
                       {.frequency_penalty = -2.1},
                       {.frequency_penalty = nan},
                       {.logit_bias = {{3, 101}}},
                       {.logit_bias = {{3, nan}}},
                       {.logit_bias = {{3, std::numeric_limits<double>::infinity()}}}})
    EXPECT_THROW(bad.Validate(), Error);
  EXPECT_NO_THROW((Sampling{.temperature = 2, .top_k = 40, .top_p = 1, .min_p = 1}.Validate()));
  EXPECT_NO_THROW((Sampling{.logit_bias = {{3, -std::numeric_limits<double>::infinity()}}, .repetition_penalty = 0.5, .presence_penalty = -2}.Validate()));
}

TEST(Sampling, RefusesIdsOutsideTheVocabularyAndTheBanOfAll) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  EXPECT_THROW((Sampling{.logit_bias = {{5, 1}}}.ValidateIds(5)), Error);
  EXPECT_THROW((Sampling{.logit_bias = {{-1, 1}}}.ValidateIds(5)), Error);
  EXPECT_THROW((Sampling{.logit_bias = {{0, kNever}, {1, kNever}}}.ValidateIds(2)), Error);
  EXPECT_NO_THROW((Sampling{.logit_bias = {{0, kNever}, {0, kNever}}}.ValidateIds(2)));
  EXPECT_NO_THROW((Sampling{.logit_bias = {{0, -100}, {1, -100}}}.ValidateIds(2)));
}

// A choice and its edits are all that a GPU needs of a sampler, also one that knows all tokens but the last; there is none of what looks at more than that.
TEST(Sampler, AChoiceIsWhatItSamples) {
  SamplerSpace space;
  for (uint64_t seed = 0; seed < 200; seed++) {
    std::vector<float> logits = RandomLogits(500, seed);
    if (seed % 4 == 0)
      for (float& x : logits) x = std::round(x);  // equal ones
    Sampling sampling{.temperature = seed % 7 == 0 ? 0 : 0.3 + 0.01 * static_cast<double>(seed),
                      .top_k = static_cast<int64_t>(seed % 60),
                      .top_p = seed % 2 ? 0.7 : 1,
                      .min_p = seed % 3 ? 0 : 0.05,
                      .seed = seed};
    if (seed % 3 == 0) sampling.repetition_penalty = 1.4;
    if (seed % 5 == 0) sampling.presence_penalty = 1, sampling.frequency_penalty = -0.5;
    if (seed % 2 == 0) sampling.logit_bias = {{3, 4}, {9, -std::numeric_limits<double>::infinity()}, {400, 3.5}};
    const std::vector<int32_t> prompt = {400, 17, 3, 17}, never = {3, 600, 5};
    Sampler sampler(sampling, prompt), late(sampling, prompt);
    int32_t last = -1;
    for (uint64_t step = 0; step < 20; step++) {
      const std::span<const int32_t> now = step % 3 ? std::span<const int32_t>() : never;
      std::vector<LogitEdit> edits(step % 2);  // of another
      const Choice choice = sampler.ChoiceAt(step, now, -1, edits), awaiting = late.ChoiceAt(step, now, last < 0 ? -1 : 7, edits);
      const auto choose = [&](const Choice& c) {
        return Sampler::Choose(c, std::span(edits).subspan(static_cast<size_t>(c.first_edit), static_cast<size_t>(c.edits)), last, logits, space);
      };
      const int32_t due = sampler.Sample(logits, step, space, now);
      EXPECT_EQ(choose(choice), due) << seed;
      EXPECT_EQ(choose(awaiting), due) << seed;
      if (last >= 0) late.Count(last);
      last = due;
    }
    logits[seed] = seed % 2 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
    EXPECT_EQ(Sampler::Choose({.temperature = 1}, {}, -1, logits, space), -1);
  }
  EXPECT_TRUE(Sampler({.temperature = 1, .top_k = kMostTopK}).HasChoices());
  for (const Sampling& other : {Sampling{.temperature = 1, .top_k = kMostTopK + 1}, Sampling{.temperature = 1e-40}}) EXPECT_FALSE(Sampler(other).HasChoices());
}

}  // namespace
}  // namespace bamba
