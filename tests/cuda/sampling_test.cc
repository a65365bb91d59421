// The GPU's choice of tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/sampler.h"
#include "tests/support/gpu.h"
#include "tests/support/numbers.h"

namespace bamba {
namespace {

std::vector<int32_t> ArgMax(Gpu& gpu, const Numbers& logits) {
  const Tensor host = logits, there = gpu.Upload(host);
  std::vector<int32_t> tokens(static_cast<size_t>(host.rows()), 12345);
  auto* const chosen = static_cast<int32_t*>(gpu.ctx.workspace->Allocate(tokens.size() * sizeof(int32_t)));
  Gpu::Here()->Upload(chosen, tokens.data(), tokens.size() * sizeof(int32_t));
  Gpu::Here()->ArgMax(there, chosen);
  Gpu::Here()->Download(tokens.data(), chosen, tokens.size() * sizeof(int32_t));
  return tokens;
}

TEST(CudaSamplingTest, TheLargestLogitAndTheLowestIdAmongEquals) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(1);
  Gpu gpu(Dtype::kBf16);
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {7, 31}, {5, 2047}, {4, 2048}, {3, 2049}, {64, 128256}, {2, 151937}}) {
    // Few different values: there are equal ones in every row.
    const Numbers logits(Dtype::kF32, {rows, vocab}, [&] { return static_cast<double>(draws.Int(-20, vocab > 100 ? -1 : 3)); });
    const std::vector<int32_t> chosen = ArgMax(gpu, logits);
    for (int64_t i = 0; i < rows; i++) {
      const float* row = logits.floats() + i * vocab;
      EXPECT_EQ(chosen[static_cast<size_t>(i)], std::max_element(row, row + vocab) - row) << rows << " x " << vocab << ", row " << i;
    }
    gpu.FreeTemporaries();
  }
}

TEST(CudaSamplingTest, ZeroHasNoSign) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Gpu gpu(Dtype::kBf16);
  Numbers logits(Dtype::kF32, {2, 5000});
  std::fill_n(logits.floats(), 10000, -1.f);
  logits.floats()[17] = -0.f, logits.floats()[4000] = 0.f, logits.floats()[5030] = 0.f, logits.floats()[5040] = -0.f;
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{17, 30}));
}

TEST(CudaSamplingTest, WhatIsNotFiniteIsReported) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(2);
  Gpu gpu(Dtype::kBf16);
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const Numbers logits(Dtype::kF32, {6, 128256}, draws.Normal());
  float* const x = logits.floats();
  x[0] = kNan, x[128256 * 2 - 1] = -kNan, x[128256 * 2 + 777] = kInfinity, x[128256 * 3 + 70000] = -kInfinity;
  x[128256 * 4 + 9] = std::numeric_limits<float>::max(), x[128256 * 5 + 128255] = 100;
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{-1, -1, -1, -1, 9, 128255}));
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{-1, -1, -1, -1, 9, 128255}));  // counters are as before
}

std::vector<int32_t> Choose(Gpu& gpu, const Numbers& logits, const std::vector<Choice>& choices, std::span<const LogitEdit> edits = {},
                            const std::vector<int32_t>& before = {}) {
  const Tensor host = logits, there = gpu.Upload(host);
  Batch batch;
  batch.choices = choices, batch.edits = edits;
  Gpu::Here()->Begin(batch);
  if (!before.empty()) {
    auto* const chosen = static_cast<int32_t*>(gpu.ctx.workspace->Allocate(before.size() * sizeof(int32_t)));
    Gpu::Here()->Upload(chosen, before.data(), before.size() * sizeof(int32_t));
    Gpu::Here()->Edit(there, chosen);
  }
  std::vector<int32_t> tokens(choices.size(), 12345);
  auto* const chosen = static_cast<int32_t*>(gpu.ctx.workspace->Allocate(tokens.size() * sizeof(int32_t)));
  Gpu::Here()->Choose(there, chosen);
  Gpu::Here()->Download(tokens.data(), chosen, tokens.size() * sizeof(int32_t));
  gpu.FreeTemporaries();
  return tokens;
}

void ExpectTheSamplersChoice(Gpu& gpu, const Numbers& logits, const std::vector<Choice>& choices) {
  SamplerSpace space;
  const Tensor host = logits;
  const std::vector<int32_t> chosen = Choose(gpu, logits, choices);
  for (size_t i = 0; i < choices.size(); i++) {
    const Choice& c = choices[i];
    EXPECT_EQ(chosen[i], Sampler::Choose(c, {}, -1, {host.Row<float>(static_cast<int64_t>(i)), static_cast<size_t>(host.cols())}, space))
        << "row " << i << " of " << host.ShapeString() << ": temperature " << c.temperature << ", top_k " << c.top_k << ", top_p " << c.top_p << ", min_p "
        << c.min_p << ", typical_p " << c.typical_p << ", uniform " << c.uniform;
  }
}

Choice RandomChoice(Draws& draws) {
  const auto often = [&](int64_t times) { return draws.Int(1, times) > 1; };
  Choice choice;
  if (often(8)) choice.temperature = std::exp(draws.Normal()());
  if (often(3)) choice.top_p = often(4) ? draws.Uniform(0.001, 1)() : 0.5;
  if (!often(3)) choice.top_k = draws.Int(1, draws.Int(0, 1) ? kMostTopK : 50);
  if (!often(3)) choice.typical_p = often(4) ? draws.Uniform(0.001, 1)() : 0.5;
  if (!often(4)) choice.min_p = often(8) ? draws.Uniform(0, 0.3)() : 1;
  choice.uniform = often(16) ? draws.Uniform(0, 1)() : static_cast<double>(draws.Int(0, 7)) / 8;
  return choice;
}

// Logits as models have them, and others: flat ones, few different ones, one that leaves nothing to the rest, ones that the temperature makes equal. Of some
// the sums come so near to where the sampler decides that the device has to add as it does.
TEST(CudaSamplingTest, TheChoiceIsTheSamplers) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(3);
  Gpu gpu(Dtype::kBf16);
  for (int trial = 0; trial < (Gpu::Short() ? 6 : 120); trial++) {
    const int64_t vocab = std::vector<int64_t>{1, 2, 5, 100, 777, 4096, 5001, 20000, 128256, 151937}[static_cast<size_t>(trial % 10)];
    const int64_t rows = vocab > 100000 ? draws.Int(1, 5) : draws.Int(1, 40);
    int64_t at = 0, kind = 0;
    double scale = 1;
    const auto normal = draws.Normal();
    const Numbers logits(Dtype::kF32, {rows, vocab}, [&]() -> double {
      if (at++ % vocab == 0) kind = draws.Int(0, 7), scale = std::exp(2 * normal());
      switch (kind) {
        case 1: return std::round(scale * normal());
        case 2: return 3;
        case 3: return draws.Int(0, 99) > 0 ? -50 : normal();
        case 4: return draws.Int(0, 49) > 0 ? 0.01 * normal() : 30 + normal();
        case 5: return 1e8 * static_cast<double>(draws.Int(0, 6));
        case 6: return 20 - 1e-6 * static_cast<double>(draws.Int(0, 2));
        case 7: return at % vocab == 1 ? 20 : 1e-9 * static_cast<double>(draws.Int(0, 2));
        default: return scale * normal();
      }
    });
    if (draws.Int(0, 5) == 0)
      logits.floats()[draws.Int(0, rows * vocab - 1)] = draws.Int(0, 1) ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
    std::vector<Choice> choices;
    for (int64_t i = 0; i < rows; i++) choices.push_back(RandomChoice(draws));
    ExpectTheSamplersChoice(gpu, logits, choices);
  }
}

// Biases, penalties and bans, of tokens that the host knows and of one that it awaits.
TEST(CudaSamplingTest, EditsAreTheSamplers) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(5);
  Gpu gpu(Dtype::kBf16);
  SamplerSpace space;
  for (int trial = 0; trial < (Gpu::Short() ? 4 : 60); trial++) {
    const int64_t vocab = std::vector<int64_t>{3, 100, 777, 5001, 128256}[static_cast<size_t>(trial % 5)], rows = draws.Int(1, 40);
    const auto token = [&] { return static_cast<int32_t>(draws.Int(0, draws.Int(0, 1) ? vocab - 1 : std::min<int64_t>(vocab - 1, 9))); };
    const Numbers logits(Dtype::kF32, {rows, vocab}, [&] { return draws.Int(0, 9) > 0 ? draws.Normal(3)() : std::round(draws.Normal(3)()); });
    if (trial % 4 == 0) logits.floats()[draws.Int(0, rows * vocab - 1)] = std::numeric_limits<float>::quiet_NaN();
    std::vector<Choice> choices;
    std::vector<LogitEdit> edits;
    std::vector<int32_t> before;
    std::vector<int32_t> due;
    for (int64_t i = 0; i < rows; i++) {
      const Choice how = RandomChoice(draws);
      Sampling sampling{.temperature = trial % 3 ? how.temperature : 0,
                        .top_k = how.top_k,
                        .top_p = how.top_p,
                        .min_p = how.min_p,
                        .typical_p = how.typical_p,
                        .seed = draws.random()()};
      if (draws.Int(0, 2) > 0) sampling.repetition_penalty = draws.Uniform(0.5, 2)();
      if (draws.Int(0, 2) > 0) sampling.presence_penalty = draws.Uniform(-1, 2)(), sampling.frequency_penalty = draws.Uniform(-1, 2)();
      // Token 2 stays.
      if (draws.Int(0, 1)) sampling.logit_bias = {{0, -std::numeric_limits<double>::infinity()}, {2, draws.Uniform(-100, 100)()}, {2, 0.25}};
      std::vector<int32_t> prompt(static_cast<size_t>(draws.Int(0, draws.Int(0, 3) ? 20 : 2000))), never;
      for (int32_t& id : prompt) id = token();
      if (draws.Int(0, 1)) never = {1, 200000, 0};
      Sampler sampler(sampling, prompt);
      for (int64_t count = draws.Int(0, 30); count > 0; count--) sampler.Count(token());
      before.push_back(token());
      const int64_t awaited = draws.Int(0, 1) ? i : -1;
      choices.push_back(sampler.ChoiceAt(7, never, awaited, edits));
      if (awaited >= 0) sampler.Count(before.back());
      const std::span<const float> row(logits.floats() + i * vocab, static_cast<size_t>(vocab));
      const bool finite = std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
      due.push_back(finite ? sampler.Sample(row, 7, space, never) : -1);
    }
    EXPECT_EQ(Choose(gpu, logits, choices, edits, before), due) << rows << " x " << vocab << ", trial " << trial;
  }
}

// Many rows: more than blocks would share.
TEST(CudaSamplingTest, ChoicesOfManyRows) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(4);
  Gpu gpu(Dtype::kBf16);
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{300, 4096}, {256, 50257}}) {
    if (Gpu::Short() && vocab > 4096) continue;
    const Numbers logits(Dtype::kF32, {rows, vocab}, draws.Normal(3));
    std::vector<Choice> choices;
    for (int64_t i = 0; i < rows; i++)
      choices.push_back({.temperature = draws.Uniform(0.5, 1.5)(),
                         .top_p = i % 4 ? 0.95 : 1,
                         .typical_p = i % 5 ? 1 : 0.7,
                         .uniform = draws.Uniform(0, 1)(),
                         .top_k = i % 3 ? 0 : 40});
    ExpectTheSamplersChoice(gpu, logits, choices);
    ExpectTheSamplersChoice(gpu, logits, choices);  // counters are as before
  }
}

}  // namespace
}  // namespace bamba
