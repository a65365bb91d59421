// What a request asks of the choice of its tokens: where a text ends, and what the model thought of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "engine/engine.h"
#include "tests/engine/player.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

using testing::HasSubstr;

EngineOptions Options(int32_t sequences = 1) { return {.name = "m", .execution = {.threads = 2}, .context = 512, .sequences = sequences}; }

Generation Write(const Model& model, const Request& request) {
  Engine engine(model, nullptr, Options());
  return engine.Generate(request, [](std::string_view) {});
}

bool Same(const TokenLogprobs& a, const TokenLogprobs& b) {
  const auto same = [](const Logprob& x, const Logprob& y) { return x.id == y.id && x.logprob == y.logprob; };
  return same(a.token, b.token) && std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(), same);
}

// Whatever the sampler does to the logits, and however the prompt is cut into steps: the log probabilities are those of the model's own logits, read in one
// piece.
TEST(Choices, LogprobsAreTheModelsOwn) {
  for (size_t length : {1u, 2u, 17u, 300u}) {
    SCOPED_TRACE(length);
    Random random(length);
    const Model model = RandomModel(TinyConfig(2, {1}), length);
    Request request{.prompt = RandomTokens(random, static_cast<int64_t>(length), model.config),
                    .max_tokens = 5,
                    .completions = 2,
                    .sampling = {.logit_bias = {{3, 4}}, .repetition_penalty = 1.3, .temperature = 1.5, .seed = 1},
                    .ignore_eos = true,
                    .top_logprobs = 3,
                    .prompt_logprobs = true};
    Engine engine(model, nullptr, Options(3));
    std::vector<Generation> written(2);
    engine.Submit({.prompt = RandomTokens(random, 40, model.config), .max_tokens = 30, .ignore_eos = true}, {});  // a neighbour in the batches
    engine.Step();
    engine.Submit(request, {.done = [&](int i, Generation&& g) { written[static_cast<size_t>(i)] = std::move(g); }});
    while (engine.Step()) {
    }

    EXPECT_TRUE(written[1].prompt_logprobs.empty());
    ASSERT_EQ(written[0].prompt_logprobs.size(), length - 1);
    for (const Generation& g : written) {
      ASSERT_EQ(g.logprobs.size(), 5u);
      std::vector<int32_t> all = request.prompt;
      all.insert(all.end(), g.tokens.begin(), g.tokens.end());
      const auto rows = static_cast<int64_t>(all.size());
      Player player(model, {.slots = 1, .pages = PagesFor(rows)}, 1, rows);
      SequenceState sequence = player.Begin();
      const std::vector<float> logits = player.Play({{&sequence, all}}, rows)[0];
      for (size_t i = 0; i + 1 < all.size(); i++) {
        const auto vocab = static_cast<size_t>(model.config.vocab);
        const TokenLogprobs due = Logprobs(std::span(logits).subspan(i * vocab, vocab), all[i + 1], 3);
        if (i + 1 < length && g.prompt_logprobs.empty()) continue;
        EXPECT_TRUE(Same(i + 1 < length ? g.prompt_logprobs[i] : g.logprobs[i + 1 - length], due)) << i;
      }
    }
  }
}

// A text whose tokens are known, and all different, so that each can be made its end.
class Ends : public testing::Test {
 protected:
  Ends() : model_(RandomModel(TinyConfig(2, {1}), 5)) {
    request_ = {.prompt = {1, 2, 3}, .max_tokens = 12, .sampling = {.repetition_penalty = 100}, .ignore_eos = true};
    free_ = Write(model_, request_).tokens;
  }
  std::vector<int32_t> First(size_t n) const { return {free_.begin(), free_.begin() + static_cast<ptrdiff_t>(n)}; }

  Model model_;
  Request request_;
  std::vector<int32_t> free_;
};

TEST_F(Ends, StopTokensEndATextBeforeThem) {
  ASSERT_EQ(free_.size(), 12u);
  request_.stop_tokens = {free_[7], free_[4]};
  const Generation g = Write(model_, request_);
  EXPECT_EQ(g.tokens, First(4));
  EXPECT_EQ(g.finish, FinishReason::kStop);
}

TEST_F(Ends, TheModelsOwnEndUnlessIgnored) {
  model_.config.eos = {free_[5]};
  EXPECT_EQ(Write(model_, request_).tokens, free_);
  request_.ignore_eos = false;
  const Generation g = Write(model_, request_);
  EXPECT_EQ(g.tokens, First(5));
  EXPECT_EQ(g.finish, FinishReason::kEos);
  request_.stop_tokens = {free_[5]}, request_.ignore_eos = true;
  EXPECT_EQ(Write(model_, request_).finish, FinishReason::kStop);
}

TEST_F(Ends, NoneBeforeMinTokens) {
  model_.config.eos = {free_[2], 1 << 20};  // a config may name an id that the model lacks
  request_.stop_tokens = {free_[4]};
  request_.ignore_eos = false, request_.min_tokens = 9;
  const Generation g = Write(model_, request_);
  ASSERT_GE(g.tokens.size(), 9u);
  EXPECT_EQ(std::count(g.tokens.begin(), g.tokens.begin() + 9, free_[2]), 0);
  EXPECT_EQ(std::count(g.tokens.begin(), g.tokens.begin() + 9, free_[4]), 0);
  EXPECT_EQ(g.tokens[0], free_[0]);
  EXPECT_EQ(g.tokens[1], free_[1]);
  EXPECT_NE(g.tokens[2], free_[2]);
}

// Without a tokenizer the text is the ids, a blank before each.
TEST_F(Ends, StopStringsAreTextBeforeMinTokens) {
  request_.stop = {" "};
  EXPECT_EQ(Write(model_, request_).text, "");
  request_.min_tokens = 3;
  const Generation g = Write(model_, request_);
  EXPECT_EQ(g.text, fmt::format(" {} {} {}", free_[0], free_[1], free_[2]));
  EXPECT_EQ(g.finish, FinishReason::kStop);
  request_.stop = {std::string(10000, 'x')};  // longer than any text
  EXPECT_EQ(Write(model_, request_).tokens, free_);
}

TEST_F(Ends, ImpossibleRequestsAreRefused) {
  const Engine engine(model_, nullptr, Options());
  const auto refused = [&](const Request& request, const char* why) {
    try {
      engine.Check(request);
      ADD_FAILURE() << why;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr(why));
    }
  };
  const double never = -std::numeric_limits<double>::infinity();
  refused({.prompt = {1}, .max_tokens = 3, .min_tokens = 4}, "min_tokens is 4 and max_tokens 3");
  refused({.prompt = {1}, .max_tokens = 3, .min_tokens = -1}, "min_tokens is -1");
  refused({.prompt = {1}, .max_tokens = 3, .stop_tokens = {131}}, "stop token 131");
  refused({.prompt = {1}, .max_tokens = 3, .stop_tokens = {-1}}, "stop token -1");
  refused({.prompt = {1}, .max_tokens = 3, .top_logprobs = -1}, "top_logprobs is -1");
  refused({.prompt = {1}, .max_tokens = 3, .sampling = {.logit_bias = {{131, 1}}}}, "token 131");
  Request none{.prompt = {1}, .max_tokens = 3, .stop_tokens = {0}, .min_tokens = 1};
  for (int32_t id = 1; id < 131; id++) none.sampling.logit_bias.push_back({id, never});
  refused(none, "together with min_tokens forbids all 131 tokens");
  none.min_tokens = 0;
  EXPECT_TRUE(Write(model_, none).tokens.empty());  // only the stop token is left
}

}  // namespace
}  // namespace bamba
