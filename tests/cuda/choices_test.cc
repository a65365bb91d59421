// Texts whose tokens the GPU chooses.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "engine/engine.h"
#include "tests/support/gpu.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

struct Told {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::string> errors;
};
// The texts of requests that are written side by side. `all`: each asks for log probabilities, and so for all logits.
Told TextsOf(const Model& model, std::vector<Request> requests, bool all, bool ahead = true) {
  Engine engine(model, nullptr, {.name = "m", .execution = {.precise = true, .accelerator = Gpu::Here()}, .context = 300, .sequences = 24, .ahead = ahead});
  Told told;
  told.tokens.resize(requests.size() * 3), told.errors.resize(requests.size() * 3);
  for (size_t i = 0; i < requests.size(); i++) {
    if (all) requests[i].top_logprobs = 0;
    engine.Submit(requests[i], {.done = [&told, i](int index, Generation&& g) {
                    told.tokens[3 * i + static_cast<size_t>(index)] = g.tokens, told.errors[3 * i + static_cast<size_t>(index)] = g.error;
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
      {.temperature = 2, .top_k = 5000, .seed = 7}};
  for (const int64_t vocab : {int64_t{777}, int64_t{3000}}) {
    Config config = TinyConfig(2, {1});
    config.vocab = vocab;
    const Model model = RandomModel(config, 1);
    std::vector<Request> mixed;
    for (size_t i = 0; i < samplings.size(); i++)
      mixed.push_back({.prompt = std::vector<int32_t>(3 + 20 * i, static_cast<int32_t>(i)),
                       .max_tokens = 20 + static_cast<int64_t>(3 * i),
                       .completions = i % 3 == 1 ? 3 : 1,
                       .sampling = samplings[i],
                       .min_tokens = i % 2 ? 10 : 0});
    const Told due = TextsOf(model, mixed, true);
    EXPECT_EQ(TextsOf(model, mixed, false).tokens, due.tokens) << "mixed, " << vocab;
    for (const bool ahead : {true, false}) {
      std::vector<Request> known = mixed;  // at this place of the text already
      for (Request& request : known) request.min_tokens = 0;
      std::erase_if(known, [](const Request& request) { return !Sampler(request.sampling).ChoiceAt(0); });
      EXPECT_EQ(TextsOf(model, known, false, ahead).tokens, TextsOf(model, known, true).tokens) << "ahead " << ahead << ", " << vocab;
    }
    for (const Request& request : vocab == 777 || Gpu::Short() ? std::vector<Request>() : mixed)
      EXPECT_EQ(TextsOf(model, {request}, false).tokens, TextsOf(model, {request}, true).tokens) << "top_k " << request.sampling.top_k << " of " << vocab;
  }
}

// A text whose logits stop being finite in the middle ends there; the step that was queued before this was known does the others no harm.
TEST(CudaChoicesTest, ATextThatBreaksInTheMiddle) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Config config = TinyConfig(2, {1});
  config.tied = false;
  const Model model = RandomModel(config, 1);
  std::vector<Request> requests;
  for (int32_t i = 0; i < 6; i++)
    requests.push_back(
        {.prompt = {i, 3, 5}, .max_tokens = 30, .sampling = {.temperature = i % 2 ? 0.9 : 0, .seed = static_cast<uint64_t>(i)}, .ignore_eos = true});
  const Told whole = TextsOf(model, requests, false);
  const int32_t poison = whole.tokens[0][9];
  float* const row = model.weights.embedding.weight.Row<float>(poison);
  std::fill_n(row, config.dim, std::numeric_limits<float>::quiet_NaN());
  const Told broken = TextsOf(model, requests, false);
  for (size_t i = 0; i < whole.tokens.size(); i++) {
    const std::vector<int32_t>& text = whole.tokens[i];
    const auto until = std::find(text.begin(), text.end(), poison) - text.begin() + 1;  // it is chosen, and then read
    const bool breaks = until < std::ssize(text);
    EXPECT_EQ(broken.tokens[i], breaks ? std::vector<int32_t>(text.begin(), text.begin() + until) : text) << i;
    EXPECT_EQ(broken.errors[i].empty(), !breaks) << i;
  }
  EXPECT_FALSE(broken.errors[0].empty());
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
