// Texts whose tokens the GPU chooses.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "engine/engine.h"
#include "tests/support/broken_text.h"
#include "tests/support/gpu.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

struct Told {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<std::pair<int32_t, double>>> logprobs;
  std::vector<std::string> errors;
};
// The texts of requests that are written side by side. `all`: each asks for its prompt's log probabilities, and so for all logits.
Told TextsOf(const Model& model, std::vector<Request> requests, bool all, bool ahead = true) {
  Engine engine(model, nullptr, {.name = "m", .execution = {.precise = true, .accelerator = Gpu::Here()}, .context = 300, .sequences = 24, .ahead = ahead});
  Told told;
  told.tokens.resize(requests.size() * 3), told.logprobs.resize(requests.size() * 3), told.errors.resize(requests.size() * 3);
  for (size_t i = 0; i < requests.size(); i++) {
    requests[i].prompt_logprobs = all;
    engine.Submit(requests[i], {.done = [&told, i](int index, Generation&& g) {
                    const size_t at = 3 * i + static_cast<size_t>(index);
                    told.tokens[at] = g.tokens, told.errors[at] = g.error;
                    for (const TokenLogprobs& of : g.logprobs) {
                      told.logprobs[at].emplace_back(of.token.id, of.token.logprob);
                      for (const Logprob& top : of.top) told.logprobs[at].emplace_back(top.id, top.logprob);
                    }
                  }});
  }
  while (engine.Step()) {
  }
  return told;
}

TEST(CudaChoicesTest, AsFromAllLogits) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const std::vector<Sampling> samplings = {
      {},
      {.temperature = 0.9, .top_k = 40, .seed = 1},
      {.temperature = 1.5, .top_k = 1, .seed = 2},
      {.temperature = 1.2, .top_k = 900, .top_p = 0.9, .seed = 3},
      {.temperature = 0.7, .top_k = 5, .min_p = 0.1, .typical_p = 0.8, .seed = 4},
      {.temperature = 0.8, .seed = 5},
      {.temperature = 0.8, .top_p = 0.95, .seed = 8},
      {.temperature = 1.1, .top_p = 0.5, .min_p = 0.02, .seed = 9},
      {.logit_bias = {{3, 5.0}, {7, -std::numeric_limits<double>::infinity()}}, .temperature = 0.8, .top_k = 20, .seed = 6},
      {.repetition_penalty = 1.3, .frequency_penalty = 0.5},
      {.logit_bias = {{3, 5.0}, {4, 2.0}},
       .repetition_penalty = 1.2,
       .presence_penalty = 0.4,
       .frequency_penalty = 0.7,
       .temperature = 0.9,
       .top_p = 0.9,
       .seed = 10},
      {.presence_penalty = 2, .temperature = 0.5, .min_p = 0.05, .seed = 11},
      {.temperature = 2, .top_k = 5000, .seed = 7}};
  for (const int64_t vocab : {777, 3000}) {
    if (Gpu::Short() && vocab == 777) continue;
    Config config = TinyConfig(2, {1});
    config.vocab = vocab;
    const Model model = RandomModel(config, 1);
    std::vector<Request> mixed;
    for (size_t i = 0; i < samplings.size(); i++)
      mixed.push_back({.prompt = std::vector<int32_t>(3 + 20 * i, static_cast<int32_t>(i)),
                       .max_tokens = Gpu::Short() ? 12 : 20 + static_cast<int64_t>(3 * i),
                       .completions = i % 3 == 1 ? 3 : 1,
                       .sampling = samplings[i],
                       .min_tokens = i % 2 ? 10 : 0});
    for (size_t i = 0; i < mixed.size(); i++)
      if (i % 4 > 1) mixed[i].top_logprobs = std::vector<int64_t>{0, 3, kMostTopLogprobs, 100}[i / 4 % 4];
    const Told due = TextsOf(model, mixed, true), told = TextsOf(model, mixed, false);
    EXPECT_EQ(told.tokens, due.tokens) << "mixed, " << vocab;
    EXPECT_EQ(told.logprobs, due.logprobs) << "mixed, " << vocab;
    for (const bool ahead : {true, false}) {
      if (Gpu::Short() && !ahead) continue;
      std::vector<Request> known = mixed;
      std::erase_if(known, [](const Request& request) { return !Sampler(request.sampling).HasChoices(); });
      const Told known_due = TextsOf(model, known, true), known_told = TextsOf(model, known, false, ahead);
      EXPECT_EQ(known_told.tokens, known_due.tokens) << "ahead " << ahead << ", " << vocab;
      EXPECT_EQ(known_told.logprobs, known_due.logprobs) << "ahead " << ahead << ", " << vocab;
    }
    for (const Request& request : vocab == 777 || Gpu::Short() ? std::vector<Request>() : mixed)
      EXPECT_EQ(TextsOf(model, {request}, false).tokens, TextsOf(model, {request}, true).tokens) << "top_k " << request.sampling.top_k << " of " << vocab;
  }
}

TEST(CudaChoicesTest, ATextThatBreaksInTheMiddle) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  BreakATextInTheMiddle({.precise = true, .accelerator = Gpu::Here()});
}

TEST(CudaChoicesTest, LogitsThatAreNotFinite) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  model.weights.final_norm.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  for (const Sampling& sampling : {Sampling{}, Sampling{.temperature = 1, .top_k = 3}, Sampling{.temperature = 1}}) {
    const Told told = TextsOf(model, {{.prompt = {1, 2}, .max_tokens = 5, .sampling = sampling}}, false);
    EXPECT_NE(told.errors[0].find("at position 1"), std::string::npos) << told.errors[0];
    EXPECT_TRUE(told.tokens[0].empty());
  }
}

}  // namespace
}  // namespace bamba
