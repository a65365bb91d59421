#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "base/error.h"
#include "base/mapped_file.h"
#include "io/checkpoint.h"
#include "tests/support/device.h"
#include "tests/support/random_model.h"
#include "text/tokenizer.h"

namespace bamba {
namespace {

const auto kContinue = [](const PerplexityResult&) { return true; };

std::vector<int32_t> RandomTokens(int64_t n, int64_t vocab) {
  std::mt19937 random(5);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; i++) tokens.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
  return tokens;
}

TEST(PerplexityTest, WindowsStartEveryStrideAndDropTheTail) {
  EXPECT_EQ(WindowCount(0, {.window = 4, .stride = 4}), 0);
  EXPECT_EQ(WindowCount(1, {.window = 4, .stride = 4}), 0);
  EXPECT_EQ(WindowCount(2, {.window = 4, .stride = 4}), 1);  // shorter than a window: one of its own length
  EXPECT_EQ(WindowCount(5, {.window = 4, .stride = 4}), 1);
  EXPECT_EQ(WindowCount(8, {.window = 4, .stride = 4}), 1);
  EXPECT_EQ(WindowCount(9, {.window = 4, .stride = 4}), 2);
  EXPECT_EQ(WindowCount(9, {.window = 4, .stride = 1}), 5);
  EXPECT_EQ(WindowCount(9, {.window = 4, .stride = 1, .max_windows = 3}), 3);
}

TEST(PerplexityTest, EveryTokenIsScoredFromTheStartOfItsWindow) {
  const Model model = RandomModel(TinyConfig(3, {1}), 1);
  Device cpu(cpu::kTable, Dtype::kF32);
  const auto tokens = RandomTokens(41, model.config.vocab);
  const std::vector<int32_t> bytes(tokens.size(), 3);
  for (const PerplexityOptions options : {PerplexityOptions{.window = 10, .stride = 10}, PerplexityOptions{.window = 12, .stride = 5}}) {
    // Each scored token by itself: the last one of a text that starts where its window does.
    double sum = 0, squares = 0;
    int64_t scored = 0;
    for (int64_t k = 0; k < WindowCount(41, options); k++)
      for (int64_t i = k == 0 ? 0 : options.window - options.stride; i < options.window; i++) {
        float nll;
        ScoreTokens(cpu.ctx, model, std::span(tokens).subspan(static_cast<size_t>(k * options.stride), static_cast<size_t>(i) + 2), i,
                    Tensor(&nll, Dtype::kF32, {1}));
        sum += static_cast<double>(nll), squares += static_cast<double>(nll) * static_cast<double>(nll), scored++;
      }
    const PerplexityResult result = Perplexity(cpu.ctx, model, tokens, bytes, options, kContinue);
    const double n = static_cast<double>(scored), mean = sum / n;
    EXPECT_EQ(result.tokens, scored);
    EXPECT_DOUBLE_EQ(result.nll_per_token, mean);
    EXPECT_DOUBLE_EQ(result.perplexity, std::exp(mean));
    EXPECT_NEAR(result.perplexity_se, std::exp(mean) * std::sqrt((squares / n - mean * mean) / (n - 1)), 1e-9 * std::exp(mean));
    EXPECT_DOUBLE_EQ(result.bits_per_byte, mean / std::log(2.0) / 3);
  }
}

TEST(PerplexityTest, StopsWhereTheReportSaysSo) {
  const Model model = RandomModel(TinyConfig(2, {}), 2);
  Device cpu(cpu::kTable, Dtype::kF32);
  const auto tokens = RandomTokens(41, model.config.vocab);
  const PerplexityResult result =
      Perplexity(cpu.ctx, model, tokens, tokens, {.window = 10, .stride = 10}, [](const PerplexityResult& r) { return r.windows < 2; });
  EXPECT_EQ(result.windows, 2);
}

TEST(PerplexityTest, NothingToScoreIsAnError) {
  const Model model = RandomModel(TinyConfig(2, {}), 2);
  Device cpu(cpu::kTable, Dtype::kF32);
  const std::vector<int32_t> one = {1};
  EXPECT_THROW(Perplexity(cpu.ctx, model, one, one, {}, kContinue), Error);
}

// transformers' figures for the shipped model, fp32 arithmetic: the books and figures lie in $BAMBA_SHARED. With activations rounded to bf16 where the
// processor has products of those, the perplexity is still within 0.05 %.
TEST(PerplexityTest, ShippedModelAgreesWithTransformers) {
  const char* shared = std::getenv("BAMBA_SHARED");
  if (!shared) GTEST_SKIP() << "set BAMBA_SHARED to the folder with data/books";
  const bool full = std::getenv("BAMBA_FULL") != nullptr;
  const std::string directory = BAMBA_SOURCE_DIR "/models/mini";
  const Model model = LoadModel(directory);
  const Tokenizer tokenizer = Tokenizer::Load(directory);
  Device cpu(cpu::kTable, Dtype::kF32, AvailableCores());
  const struct {
    const char* book;
    double nll;  // of the first 64 windows of 1,024 tokens
  } expected[] = {{"Great-Expectations_1400.txt", 3.945555728301179},
                  {"The-Crimson-Fairy-Book_2435.txt", 3.3866599822388355},
                  {"The-Memoirs-of-Sherlock-Holmes_834.txt", 3.60092256542744}};
  for (const auto& e : expected) {
    const auto tokens = tokenizer.Encode(ReadFile(std::string(shared) + "/data/books/" + e.book));
    const PerplexityResult result = Perplexity(cpu.ctx, model, tokens, tokens, {.max_windows = 64}, kContinue);
    EXPECT_NEAR(result.nll_per_token, e.nll, 1e-4 * e.nll) << e.book;
    if (!full) break;
    cpu.ctx.precise = false;
    EXPECT_NEAR(Perplexity(cpu.ctx, model, tokens, tokens, {.max_windows = 64}, kContinue).nll_per_token, e.nll, 5e-4) << e.book;
    cpu.ctx.precise = true;
  }
}

}  // namespace
}  // namespace bamba
