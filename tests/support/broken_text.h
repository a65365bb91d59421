#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "engine/engine.h"
#include "tests/support/random_model.h"

namespace bamba {

// A text whose logits stop being finite in the middle ends there; its row in the step that was queued before this was known does the others no harm.
inline void BreakATextInTheMiddle(const Execution& execution) {
  Config config = TinyConfig(2, {1});
  config.tied = false;
  const Model model = RandomModel(config, 1);
  std::vector<Request> requests;
  for (int32_t i = 0; i < 6; i++) {
    requests.push_back(
        {.prompt = {i, 3, 5}, .max_tokens = 30, .sampling = {.temperature = i % 2 ? 0.9 : 0, .seed = static_cast<uint64_t>(i)}, .ignore_eos = true});
    if (i % 3 == 2) requests.back().sampling.frequency_penalty = 1, requests.back().top_logprobs = 2;
  }
  const auto texts = [&] {
    Engine engine(model, nullptr, {.name = "m", .execution = execution, .context = 256, .sequences = 4, .ahead = true});
    std::vector<Generation> done(requests.size());
    for (size_t i = 0; i < requests.size(); i++) engine.Submit(requests[i], {.done = [&done, i](int, Generation&& g) { done[i] = std::move(g); }});
    while (engine.Step()) {
    }
    return done;
  };
  const std::vector<Generation> whole = texts();
  const int32_t poison = whole[0].tokens[9];
  std::fill_n(model.weights.embedding.weight.Row<float>(poison), config.dim, std::numeric_limits<float>::quiet_NaN());
  const std::vector<Generation> broken = texts();
  for (size_t i = 0; i < whole.size(); i++) {
    const std::vector<int32_t>& text = whole[i].tokens;
    const auto until = std::find(text.begin(), text.end(), poison) - text.begin() + 1;  // it is chosen, and then read
    const bool breaks = until < std::ssize(text);
    EXPECT_EQ(broken[i].tokens, breaks ? std::vector<int32_t>(text.begin(), text.begin() + until) : text) << i;
    EXPECT_EQ(broken[i].finish == FinishReason::kError, breaks) << i;
    EXPECT_EQ(broken[i].error.find("not finite at position") != std::string::npos, breaks) << broken[i].error;
  }
  EXPECT_EQ(broken[0].finish, FinishReason::kError);
}

}  // namespace bamba
