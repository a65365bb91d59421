// Steps that are queued before the tokens of the ones before them are known: on the CPU, where a queued batch is computed at once and its tokens are told late.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/session.h"
#include "tests/engine/allocations.h"
#include "tests/engine/player.h"
#include "tests/support/broken_text.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

EngineOptions Options(int32_t sequences, bool ahead, int64_t context = 256) {
  return {.name = "m", .execution = {.threads = 2}, .context = context, .sequences = sequences, .ahead = ahead};
}

Request RandomRequest(Random& random, const Config& c, int32_t sequences) {
  const auto rarely = [&] { return random() % 5 == 0; };
  Request request{.prompt = RandomTokens(random, Pick(random, 1, 90), c), .max_tokens = Pick(random, 0, 25), .ignore_eos = true};
  request.completions = rarely() ? static_cast<int>(Pick(random, 1, sequences)) : 1;
  request.sampling = {.temperature = random() % 3 ? 1.0 : 0.0, .top_k = rarely() ? Pick(random, 1, 20) : 0, .top_p = rarely() ? 0.8 : 1, .seed = random()};
  if (rarely()) request.stop_tokens = RandomTokens(random, 3, c);
  if (rarely()) request.stop = {" " + std::to_string(Pick(random, 0, c.vocab - 1)) + " "};
  if (rarely()) request.sampling.repetition_penalty = 1.2;
  if (rarely()) request.sampling.presence_penalty = 1, request.sampling.frequency_penalty = 0.5;
  if (rarely()) request.sampling.logit_bias = {{static_cast<int32_t>(Pick(random, 0, c.vocab - 1)), 3}, {0, -std::numeric_limits<double>::infinity()}};
  if (rarely()) request.top_logprobs = Pick(random, 0, 30);
  if (rarely() && rarely()) request.prompt_logprobs = true;
  if (rarely()) request.min_tokens = request.max_tokens / 2;
  return request;
}

Generation Alone(const Model& model, Request request, int index) {
  request.completions = 1, request.sampling.seed += static_cast<uint64_t>(index);
  Engine engine(model, nullptr, Options(1, false));
  return engine.Generate(request, [](std::string_view) {});
}

// Requests come while others run, some are cancelled, a session has its turns in between: each text is what it is alone.
TEST(Ahead, EachAsIfAlone) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    const auto sequences = static_cast<int32_t>(Pick(random, 2, 5));
    Engine engine(model, nullptr, Options(sequences, true));
    constexpr size_t kRequests = 10;
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    std::vector<std::map<int, Generation>> done(kRequests);
    size_t cancelled = kRequests;
    const auto submit = [&] {
      const size_t i = requests.size();
      requests.push_back(RandomRequest(random, model.config, sequences - 1));
      ids.push_back(engine.Submit(
          requests.back(), {.done = [&done, i](int index, Generation&& g) { EXPECT_TRUE(done[i].emplace(index, std::move(g)).second) << "done twice"; }}));
    };
    Session session(engine);
    for (int steps = 0; engine.Step() || requests.size() < kRequests; steps++) {
      if (requests.size() < kRequests && random() % 4 == 0) submit();
      if (cancelled == kRequests && requests.size() > 5 && random() % 10 == 0) engine.Cancel(ids[cancelled = random() % requests.size()]);
      if (random() % 20 == 0) {
        Request turn{.prompt = RandomTokens(random, 3, model.config), .max_tokens = 4, .ignore_eos = true};
        std::vector<int32_t> all = session.tokens();
        all.insert(all.end(), turn.prompt.begin(), turn.prompt.end());
        if (all.size() > 200) continue;
        const Generation g = session.Generate(turn, [](std::string_view) {});
        turn.prompt = all;
        EXPECT_EQ(g.tokens, Alone(model, turn, 0).tokens) << "session";
        EXPECT_EQ(session.unread(), 1);
      }
    }
    for (size_t i = 0; i < kRequests; i++) {
      ASSERT_EQ(done[i].size(), static_cast<size_t>(requests[i].completions));
      for (const auto& [index, g] : done[i]) {
        const Generation due = Alone(model, requests[i], index);
        if (i == cancelled && g.finish == FinishReason::kInterrupted) {
          ASSERT_LE(g.tokens.size(), due.tokens.size());
          EXPECT_TRUE(std::equal(g.tokens.begin(), g.tokens.end(), due.tokens.begin())) << "request " << i;
        } else {
          EXPECT_EQ(g.tokens, due.tokens) << "request " << i << ", text " << index;
          EXPECT_EQ(g.text, due.text);
          EXPECT_EQ(g.finish, due.finish);
          ASSERT_EQ(g.logprobs.size(), due.logprobs.size());
          for (size_t t = 0; t < g.logprobs.size(); t++) {
            EXPECT_EQ(g.logprobs[t].token.logprob, due.logprobs[t].token.logprob);
            EXPECT_EQ(g.logprobs[t].top.size(), due.logprobs[t].top.size());
          }
        }
      }
    }
  }
}

// What a listener throws ends its text alone, and what is freed is used again.
TEST(Ahead, AListenerThatThrows) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(2, true));
  std::vector<Request> requests;
  std::vector<Generation> done(6);
  for (size_t i = 0; i < done.size(); i++) {
    requests.push_back({.prompt = {static_cast<int32_t>(i), 2}, .max_tokens = 20, .ignore_eos = true});
    engine.Submit(requests[i], {.text =
                                    [i, heard = 0](int, std::string_view) mutable {
                                      if (i % 3 == 0 && heard++ == 7) throw std::runtime_error("enough");
                                    },
                                .done = [&done, i](int, Generation&& g) { done[i] = std::move(g); }});
  }
  int thrown = 0;
  for (bool more = true; more;) try {
      more = engine.Step();
    } catch (const std::runtime_error&) {
      thrown++;
    }
  EXPECT_EQ(thrown, 2);
  for (size_t i = 0; i < done.size(); i++) {
    const std::vector<int32_t> whole = Alone(model, requests[i], 0).tokens;
    EXPECT_EQ(done[i].finish, i % 3 == 0 ? FinishReason::kInterrupted : FinishReason::kLength);
    EXPECT_EQ(done[i].tokens, std::vector<int32_t>(whole.begin(), whole.begin() + (i % 3 == 0 ? 8 : 20)));
  }
}

TEST(Ahead, ATextThatBreaksInTheMiddle) { BreakATextInTheMiddle({.threads = 2}); }

TEST(Ahead, ARunningStepAllocatesNothing) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(4, true));
  for (int32_t i = 0; i < 4; i++)
    engine.Submit({.prompt = {i, 2},
                   .max_tokens = 200,
                   .sampling = {.frequency_penalty = i / 2 * 0.3, .temperature = i % 2 ? 1.0 : 0.0, .top_p = 0.9, .seed = 3},
                   .ignore_eos = true},
                  {});
  for (int i = 0; i < 20; i++) engine.Step();
  const int64_t before = Allocations();
  for (int i = 0; i < 100; i++) engine.Step();
  EXPECT_EQ(Allocations(), before);
}

// A token that the batch before chooses is read as if it had been given.
TEST(Ahead, AChosenTokenIsReadLikeAGivenOne) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  BatchRunner given(model, {.slots = 3, .pages = 12}, {.rows = 40, .scored = 3}, {}), chosen(model, {.slots = 3, .pages = 12}, {.rows = 40, .scored = 3}, {});
  std::vector<SequenceState> a, b;
  a.reserve(3), b.reserve(3);  // a runner remembers where they are
  Random random(1);
  const std::vector<Choice> choices = {{}, {.temperature = 1, .uniform = 0.3}, {.temperature = 2, .top_p = 0.7, .uniform = 0.9}};
  for (int i = 0; i < 3; i++) {
    a.push_back(given.pool().Allocate().value()), b.push_back(chosen.pool().Allocate().value());
    const std::vector<int32_t> prompt = RandomTokens(random, 10, model.config);
    given.Add(a.back(), prompt, 1), chosen.Add(b.back(), prompt, 1);
  }
  given.Queue(choices, {}), chosen.Queue(choices, {});
  for (int step = 0; step < 70; step++) {
    const std::span<const int32_t> known = given.Arrive();
    for (size_t i = 0; i < 3; i++) chosen.AddChosen(b[i], static_cast<int64_t>(i));
    chosen.Queue(choices, {});
    const std::span<const int32_t> late = chosen.Arrive();
    ASSERT_TRUE(std::equal(known.begin(), known.end(), late.begin(), late.end())) << step;
    for (size_t i = 0; i < 3; i++) given.Add(a[i], known.subspan(i, 1), 1);
    given.Queue(choices, {});
  }
}

}  // namespace
}  // namespace bamba
