// Many requests at a time: each gives what it would give alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/session.h"
#include "tests/engine/allocations.h"
#include "tests/engine/player.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

using testing::HasSubstr;

EngineOptions Options(int32_t sequences, int64_t context = 256) {
  return {.name = "m", .execution = {.threads = 2}, .context = context, .sequences = sequences};
}

Request RandomRequest(Random& random, const Config& c, int64_t most_prompt, int64_t most_tokens) {
  Request request{.prompt = RandomTokens(random, Pick(random, 1, most_prompt), c), .max_tokens = Pick(random, 0, most_tokens), .ignore_eos = true};
  request.sampling = {.temperature = random() % 3 ? 1.0 : 0.0, .top_k = Pick(random, 0, 20), .seed = random()};
  return request;
}

Generation Alone(const Model& model, const Request& request) {
  Engine engine(model, nullptr, Options(1));
  return engine.Generate(request, [](std::string_view) {});
}

// What a request's listener heard.
struct Heard {
  std::map<int, std::string> text;
  std::map<int, Generation> done;

  Listener listener() {
    return {.text = [this](int i, std::string_view piece) { text[i] += piece; },
            .done = [this](int i, Generation&& g) { EXPECT_TRUE(done.emplace(i, std::move(g)).second) << "done twice"; }};
  }
};

TEST(Requests, EachAsIfAlone) {
  for (uint64_t seed = 0; seed < 20; seed++) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    Engine engine(model, nullptr, Options(static_cast<int32_t>(Pick(random, 1, 4))));
    std::vector<Request> requests;
    std::vector<Heard> heard(8);
    for (Heard& h : heard) {
      requests.push_back(RandomRequest(random, model.config, 90, 20));
      engine.Submit(requests.back(), h.listener());
      if (random() % 2) engine.Step();
    }
    while (engine.Step()) {
    }
    for (size_t i = 0; i < heard.size(); i++) {
      const Generation alone = Alone(model, requests[i]);
      ASSERT_EQ(heard[i].done.size(), 1u);
      EXPECT_EQ(heard[i].done[0].tokens, alone.tokens);
      EXPECT_EQ(heard[i].done[0].text, alone.text);
      EXPECT_EQ(heard[i].text[0], alone.text);
      EXPECT_EQ(heard[i].done[0].finish, alone.finish);
    }
  }
}

TEST(Requests, CompletionsAreForksWithSeedsOfTheirOwn) {
  Random random(3);
  for (uint64_t seed = 0; seed < 10; seed++) {
    const Model model = RandomModel(RandomConfig(random), seed);
    Engine engine(model, nullptr, Options(5));
    Request request = RandomRequest(random, model.config, 70, 15);
    request.sampling.temperature = 1, request.completions = 4;
    Heard heard;
    engine.Submit(request, heard.listener());
    while (engine.Step()) {
    }
    ASSERT_EQ(heard.done.size(), 4u);
    for (int i = 0; i < 4; i++) {
      Request one = request;
      one.completions = 1, one.sampling.seed += static_cast<uint64_t>(i);
      EXPECT_EQ(heard.done[i].tokens, Alone(model, one).tokens);
      EXPECT_EQ(heard.text[i], heard.done[i].text);
    }
  }
}

TEST(Requests, WaitForSlotsAndPagesInOrder) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  EngineOptions options = Options(3, 4 * kKvBlock);
  options.kv_tokens = 5 * kKvBlock;
  Engine engine(model, nullptr, options);
  std::vector<int> order;
  const auto submit = [&](int id, int64_t tokens) {
    engine.Submit({.prompt = {1}, .max_tokens = tokens, .ignore_eos = true}, {.done = [&order, id](int, Generation&&) { order.push_back(id); }});
  };
  submit(0, 200), submit(1, 200), submit(2, 1);  // 4 pages each of the first two: one after the other, and the last does not overtake
  while (engine.Step()) {
  }
  EXPECT_THAT(order, testing::ElementsAre(0, 2, 1));
}

TEST(Requests, RefusedBeforeTheyBegin) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(2));
  const auto refused = [&](Request request, const char* why) {
    try {
      engine.Submit(std::move(request), {});
      ADD_FAILURE() << why;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr(why));
    }
  };
  refused({.prompt = {}, .max_tokens = 1}, "no tokens");
  refused({.prompt = {131}, .max_tokens = 1}, "token id 131");
  refused({.prompt = {-1}, .max_tokens = 1}, "token id -1");
  refused({.prompt = std::vector<int32_t>(257, 1), .max_tokens = 1}, "raise --context");
  refused({.prompt = {1}, .max_tokens = 1, .completions = 3}, "3 completions");
  refused({.prompt = {1}, .max_tokens = 1, .completions = 0}, "0 completions");
  refused({.prompt = {1}, .max_tokens = 1, .sampling = {.temperature = -1}}, "temperature");
  EXPECT_FALSE(engine.Step());

  EngineOptions small = Options(2);
  small.kv_tokens = kKvBlock;
  try {
    Engine refused_engine(model, nullptr, small);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("one sequence of 256 tokens needs 4 pages"));
  }
  EngineOptions huge = Options(1 << 20);
  huge.context = int64_t{1} << 30;
  EXPECT_THROW(Engine(model, nullptr, huge), Error);
}

TEST(Requests, CancelledAndInterrupted) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(2));
  Heard running, forked, waiting, other;
  const RequestId first = engine.Submit({.prompt = {1, 2}, .max_tokens = 100, .ignore_eos = true}, running.listener());
  engine.Step(), engine.Step();
  const RequestId second = engine.Submit({.prompt = {1, 2}, .max_tokens = 100, .completions = 2, .ignore_eos = true}, waiting.listener());
  engine.Step();
  engine.Cancel(second);
  engine.Cancel(first);
  engine.Cancel(first);
  EXPECT_EQ(running.done[0].finish, FinishReason::kInterrupted);
  EXPECT_EQ(running.done[0].tokens.size(), 3u);
  EXPECT_EQ(waiting.done.size(), 2u);

  // A prompt that is interrupted before it was forked gives everything back.
  bool stop = false;
  engine.Submit({.prompt = std::vector<int32_t>(256, 1), .max_tokens = 9, .completions = 2, .interrupted = [&] { return stop; }}, forked.listener());
  stop = true;
  engine.Step();
  EXPECT_EQ(forked.done.size(), 2u);
  EXPECT_EQ(forked.done[1].finish, FinishReason::kInterrupted);
  engine.Submit({.prompt = {1}, .max_tokens = 3, .completions = 2, .ignore_eos = true}, other.listener());
  while (engine.Step()) {
  }
  EXPECT_EQ(other.done.size(), 2u);
}

TEST(Requests, InterruptedInTheMiddleOfAText) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(2));
  int pieces = 0;
  Request request{.prompt = {1, 2}, .max_tokens = 100, .ignore_eos = true};
  const Generation whole = engine.Generate(request, [](std::string_view) {});
  request.interrupted = [&] { return pieces == 7; };
  const Generation part = engine.Generate(request, [&](std::string_view) { pieces++; });
  EXPECT_EQ(part.finish, FinishReason::kInterrupted);
  EXPECT_EQ(part.tokens, std::vector<int32_t>(whole.tokens.begin(), whole.tokens.begin() + 7));
}

// What one listener throws comes out of Step, and the others lose nothing by it.
TEST(Requests, AThrowingListenerEndsItsOwnTextOnly) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options(3));
  const Request request{.prompt = {1, 2}, .max_tokens = 6, .ignore_eos = true};
  Heard before, after;
  engine.Submit(request, before.listener());
  int thrown = 0;
  bool told = false;
  engine.Submit(request, {.text = [](int, std::string_view) { throw Error("closed pipe"); }, .done = [&](int, Generation&&) { told = true; }});
  engine.Submit(request, after.listener());
  for (bool more = true; more;) {
    try {
      more = engine.Step();
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "closed pipe");
      thrown++;
    }
  }
  EXPECT_EQ(thrown, 1);
  EXPECT_TRUE(told);
  const Generation alone = Alone(model, request);
  EXPECT_EQ(before.done[0].tokens, alone.tokens);
  EXPECT_EQ(after.done[0].tokens, alone.tokens);
  EXPECT_EQ(engine.Generate(request, [](std::string_view) {}).tokens, alone.tokens);
}

TEST(Requests, ANumberThatIsNotFiniteEndsTheTextWithAnError) {
  Model model = RandomModel(TinyConfig(2, {1}), 1);
  model.weights.embedding.weight.Row<float>(7)[3] = std::numeric_limits<float>::quiet_NaN();
  Engine engine(model, nullptr, Options(2));
  Heard bad, good;
  engine.Submit({.prompt = {7}, .max_tokens = 3}, bad.listener());
  engine.Submit({.prompt = {8}, .max_tokens = 3, .sampling = {.logit_bias = {{7, -std::numeric_limits<double>::infinity()}}}, .ignore_eos = true},
                good.listener());
  while (engine.Step()) {
  }
  EXPECT_EQ(bad.done[0].finish, FinishReason::kError);
  EXPECT_THAT(bad.done[0].error, HasSubstr("bamba verify"));
  EXPECT_EQ(good.done[0].tokens.size(), 3u);
  EXPECT_THROW(engine.Generate({.prompt = {7}, .max_tokens = 3}, [](std::string_view) {}), Error);
}

TEST(Requests, ARunningStepTakesNothingFromTheHeap) {
  const Model model = RandomModel(TinyConfig(3, {1}), 1);
  Engine engine(model, nullptr, Options(4, 1024));
  for (int i = 0; i < 4; i++)
    engine.Submit({.prompt = std::vector<int32_t>(10, i),
                   .max_tokens = 500,
                   .sampling = {.repetition_penalty = 1.1, .temperature = 1, .top_k = 40, .top_p = 0.9},
                   .ignore_eos = true},
                  {.text = [](int, std::string_view) {}});
  for (int i = 0; i < 3; i++) engine.Step();
  const int64_t before = Allocations();
  for (int i = 0; i < 200; i++) engine.Step();  // over chunks and pages
  EXPECT_EQ(Allocations() - before, 0);
}

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * 4096;
}

// 32 sequences that come and go at random: nothing grows, nobody is forgotten. BAMBA_SOAK_SECONDS: how long; under the sanitizers this is the long test.
TEST(Requests, Soak) {
  const char* asked = std::getenv("BAMBA_SOAK_SECONDS");
  const double seconds = asked ? std::atof(asked) : 2;
  Random random(5);
  const Model model = RandomModel(TinyConfig(3, {1}), 1);
  Engine engine(
      model, nullptr,
      {.name = "m", .execution = {.threads = 3}, .context = 512, .sequences = 32, .kv_tokens = 8 * 1024, .roll_back = true, .snapshot_bytes = 1 << 20});
  int64_t asked_for = 0, done = 0, wrong = 0, resident = 0;
  std::vector<RequestId> ids;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  std::optional<Session> session;
  for (int64_t step = 0; elapsed() < seconds; step++) {
    while (asked_for - done < 48 && random() % 3) {
      Request request = RandomRequest(random, model.config, random() % 8 ? 40 : 400, random() % 8 ? 30 : 100);
      request.completions = random() % 4 ? 1 : static_cast<int>(Pick(random, 2, 4));
      asked_for += request.completions;
      ids.push_back(engine.Submit(
          std::move(request), {.text = [](int, std::string_view) {}, .done = [&](int, Generation&& g) { done++, wrong += g.finish == FinishReason::kError; }}));
    }
    if (random() % 50 == 0) engine.Cancel(ids[random() % ids.size()]);
    if (random() % 100 == 0) {
      if (!session) {
        try {
          session.emplace(engine);
        } catch (const Error&) {  // all sequences are taken
        }
      } else if (session->room() < 40 || random() % 4 == 0) {
        session.reset();
      } else {
        session->Generate({.prompt = RandomTokens(random, Pick(random, 1, 20), model.config), .max_tokens = 10, .ignore_eos = true}, [](std::string_view) {});
        session->RollBack(Pick(random, 0, 10));
        session->Restore(session->Snapshot());
      }
    }
    engine.Step();
    if (elapsed() < seconds / 2) resident = std::max(resident, ResidentBytes());
  }
  session.reset();
  while (engine.Step()) {
  }
  EXPECT_EQ(done, asked_for);
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(ResidentBytes(), resident + (resident >> 4) + (int64_t{4} << 20)) << "grown since half time";
  EXPECT_EQ(engine.Generate({.prompt = {1}, .max_tokens = 2, .ignore_eos = true}, [](std::string_view) {}).tokens.size(), 2u);
}

}  // namespace
}  // namespace bamba
