#include "eval/speed.h"

#include <gtest/gtest.h>

#include <limits>

#include "model/params.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// With a rate of 1 for one and ∞ for the other, the limit is the count of bytes or of operations.
double Bytes(const Model& model, const SpeedTest& test) { return LimitSeconds(model, test, {1, kNever}); }
double Operations(const Model& model, const SpeedTest& test) { return LimitSeconds(model, test, {kNever, 1}); }

struct Sizes {
  double all = 0, matrices = 0, embedding = 0, late = 0, late_matrices = 0;  // numbers; late: of the last block, and of its mixer what doesn't mix rows
  explicit Sizes(Model& model) {
    for (const Param& p : Parameters(model.config, model.weights)) {
      const auto n = static_cast<double>(p.size());
      all += n;
      if (p.role == Role::kMatrix) matrices += n;
      const int left = static_cast<int>(model.weights.blocks.size()) - 1 - p.block;
      const auto is = [&](const char* name) { return left == 1 && p.name.ends_with(name); };
      const double share = left == 0 || is("mamba.norm.weight") || is("mamba.out_proj.weight") ? 1 : is("mamba.in_proj.weight") ? 96.0 / (96 + 96 + 96 + 6) : 0;
      late += share * n, late_matrices += p.role == Role::kMatrix ? share * n : 0;
      if (p.name == "model.embed_tokens.weight") embedding = n;
    }
  }
};

TEST(Speed, AWrittenTokenReadsWeightsStateKeysAndValues) {
  Model model = RandomModel(TinyConfig(3, {1}), 1, Dtype::kBf16);
  const Sizes sizes(model);
  // Per sequence at position 70 of two Mamba-2 layers and one of attention: the state of token 64, six inputs x|B|C and dt since, 70 keys and values.
  const double state = 2 * (6 * 16 * 24 + 6 * (6 * 16 + 2 * 2 * 24 + 6)) + 2 * 70 * 2 * 12;
  const SpeedTest test = {.batch = 3, .context = 70, .generate = 1};
  EXPECT_EQ(Bytes(model, test), 2 * (sizes.all - sizes.embedding + 3 * 48) + 4 * 3 * state);
  EXPECT_EQ(Operations(model, test), 2 * 3 * (sizes.matrices + 131 * 48));
  // At the start there is no state; token 1 finds that of token 0.
  const double first = 2 * (sizes.all - sizes.embedding + 48), second = first + 4 * (2 * (6 * 16 + 2 * 2 * 24 + 6) + 2 * 2 * 12);
  EXPECT_EQ(Bytes(model, {.generate = 2}), first + second);
}

TEST(Speed, APromptIsReadInCallsAndScoredAtItsEnd) {
  Config config = TinyConfig(2, {});
  config.tied = true;
  Model model = RandomModel(config, 1);
  const Sizes sizes(model);
  const SpeedTest test = {.batch = 2, .prompt = 600, .execution = {.precise = true}};  // else calls are longer where there is AMX
  // What doesn't mix rows in the last mixer and what follows it is done for the two rows that end a prompt.
  EXPECT_EQ(Operations(model, test), 2 * (1200 * (sizes.matrices - sizes.late_matrices) + 2 * sizes.late_matrices + 2 * 131 * 48));
  // Calls of 512, 512 and 176 rows. They end prompt 0 in the second and 1 in the third; without a head to read, the first reads 512 rows of the embedding.
  // Prompts go on at 512 and 424, which are past boundaries by 0 and 8 tokens.
  const double ssm = 6 * 16 * 24, input = 6 * 16 + 2 * 2 * 24 + 6;
  EXPECT_EQ(Bytes(model, test), 4 * (3 * (sizes.all - sizes.embedding) - sizes.late + 2 * sizes.embedding + 512 * 48 + 2 * (2 * ssm + 8 * input)));
}

TEST(Speed, ACallTakesTheLongerOfReadingAndArithmetic) {
  const Model model = RandomModel(TinyConfig(2, {}), 1);
  const SpeedTest test = {.prompt = 256};
  const double bytes = Bytes(model, test), operations = Operations(model, test);
  EXPECT_EQ(LimitSeconds(model, test, {bytes, operations / 3}), 3);
  EXPECT_EQ(LimitSeconds(model, test, {bytes / 2, operations}), 2);
}

TEST(Speed, MeasuresEachRepetitionWithinItsPlan) {
  const Model model = RandomModel(TinyConfig(3, {1}), 1, Dtype::kBf16);
  for (const SpeedTest& test :
       {SpeedTest{.batch = 3, .context = 70, .prompt = 200}, SpeedTest{.batch = 4, .generate = 70, .execution = {.threads = 2, .precise = false}},
        SpeedTest{.batch = 600, .context = 1, .generate = 1}, SpeedTest{.prompt = 1}}) {
    int64_t last = -1;
    const auto result = MeasureSpeed(model, test, 2, [&](int64_t done) {
      EXPECT_GE(done, last);
      last = done;
      return true;
    });
    ASSERT_TRUE(result);
    EXPECT_EQ(result->seconds.size(), 2u);
    EXPECT_GE(last, test.tokens());
    EXPECT_LT(last, 2 * test.tokens());
    for (double seconds : result->seconds) EXPECT_GT(seconds, 0);
    EXPECT_GT(PlanSpeed(model, test).total(), static_cast<int64_t>(ParameterCount(model.config)) * 2);
  }
}

TEST(Speed, EndsWhenTold) {
  const Model model = RandomModel(TinyConfig(2, {}), 1);
  EXPECT_FALSE(MeasureSpeed(model, {.generate = 10}, 2, [](int64_t done) { return done < 13; }));
}

}  // namespace
}  // namespace bamba
