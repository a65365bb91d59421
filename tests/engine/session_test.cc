// A text that grows by turns, goes back, and rests in a file: always the bits of a text read in one piece.

#include "engine/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "tests/engine/player.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/simd_levels.h"

namespace bamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int64_t kContext = 512;

EngineOptions Options(bool roll_back = true) {
  return {.name = "m", .execution = {.threads = 2}, .context = kContext, .sequences = 2, .roll_back = roll_back, .snapshot_bytes = 1 << 24};
}

const auto kNoEmit = [](std::string_view) {};

Request Turn(std::vector<int32_t> tokens, int64_t n) {
  return {.prompt = std::move(tokens), .max_tokens = n, .sampling = {.temperature = 1, .seed = 9}, .ignore_eos = true};
}

// What an engine that has seen nothing else continues these tokens with.
std::vector<int32_t> Fresh(const Model& model, const std::vector<int32_t>& tokens, int64_t n) {
  Engine engine(model, nullptr, Options(false));
  return engine.Generate(Turn(tokens, n), kNoEmit).tokens;
}

TEST(Session, ATurnIsAsOneText) {
  for (uint64_t seed = 0; seed < 20; seed++) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    Engine engine(model, nullptr, Options(random() % 2));
    Session session(engine);
    std::vector<int32_t> text;
    for (int turn = 0; turn < 6; turn++) {
      const auto prompt = RandomTokens(random, Pick(random, 1, 50), model.config);
      text.insert(text.end(), prompt.begin(), prompt.end());
      const Generation reply = session.Generate(Turn(prompt, 10), kNoEmit);
      ASSERT_EQ(reply.tokens, Fresh(model, text, 10));
      text.insert(text.end(), reply.tokens.begin(), reply.tokens.end());
      ASSERT_EQ(session.tokens(), text);
      ASSERT_EQ(session.unread(), 1);
    }
  }
}

TEST(Session, GoesBackByRingAndBySnapshot) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    Random random(100 + seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    Engine engine(model, nullptr, Options());
    Session session(engine);
    struct Kept {
      SnapshotId id;
      std::vector<int32_t> tokens;
      int64_t reach;
    };
    std::vector<Kept> kept;
    int64_t reach = 0;  // what RollBack must be able to go back to: a chunk before the furthest token read
    for (int turn = 0; turn < 12; turn++) {
      if (session.room() < 100) session.Clear(), reach = 0;
      const auto prompt = RandomTokens(random, Pick(random, 1, 50), model.config);
      std::vector<int32_t> text = session.tokens();
      text.insert(text.end(), prompt.begin(), prompt.end());
      ASSERT_EQ(session.Generate(Turn(prompt, 8), kNoEmit).tokens, Fresh(model, text, 8));
      reach = std::max(reach, static_cast<int64_t>(session.tokens().size()) - session.unread() - kSsdChunk);
      switch (random() % 4) {
        case 0: {
          const int64_t n = Pick(random, 0, std::min<int64_t>(kSsdChunk, static_cast<int64_t>(session.tokens().size())));
          std::vector<int32_t> left = session.tokens();
          left.resize(left.size() - static_cast<size_t>(n));
          const bool in_reach = left.empty() || static_cast<int64_t>(left.size()) >= reach;
          ASSERT_EQ(session.RollBack(n), in_reach);
          EXPECT_EQ(session.tokens() == left, in_reach || n == 0);
          if (left.empty()) reach = 0;
          break;
        }
        case 1: kept.push_back({session.Snapshot(), session.tokens(), reach}); break;
        case 2:
          if (kept.empty()) break;
          const Kept& chosen = kept[random() % kept.size()];
          ASSERT_TRUE(session.Restore(chosen.id));
          ASSERT_EQ(session.tokens(), chosen.tokens);
          reach = chosen.reach;
          break;
      }
    }
  }
}

TEST(Session, WhatIsOutOfReachIsRefusedAndChangesNothing) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options());
  Session session(engine);
  Random random(1);
  session.Generate(Turn(RandomTokens(random, 100, model.config), 5), kNoEmit);
  const auto before = session.tokens();
  EXPECT_FALSE(session.RollBack(90));
  EXPECT_EQ(session.tokens(), before);
  EXPECT_FALSE(session.Restore(77));
  EXPECT_TRUE(session.RollBack(105)) << "to the empty text";
  EXPECT_EQ(session.unread(), 0);
  EXPECT_THAT(ErrorOf([&] { session.Generate(Turn({}, 1), kNoEmit); }), HasSubstr("no tokens"));
  EXPECT_THAT(ErrorOf([&] { session.Generate(Turn({999}, 1), kNoEmit); }), HasSubstr("token id 999"));
  session.Generate(Turn({1}, 1), kNoEmit);
  EXPECT_THAT(ErrorOf([&] { session.Generate(Turn(std::vector<int32_t>(kContext, 1), 1), kNoEmit); }), HasSubstr("raise --context"));
  EXPECT_EQ(session.tokens().size(), 2u);

  Session second(engine);
  EXPECT_THAT(ErrorOf([&] { Session third(engine); }), HasSubstr("all of its 2 sequences are taken"));
  EXPECT_THROW(engine.Generate(Turn({1}, 1), kNoEmit), Error);
}

TEST(Session, WhatAListenerThrowsLeavesTheTextSound) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options());
  Session session(engine);
  int pieces = 0;
  EXPECT_THROW(session.Generate(Turn({1, 2, 3}, 50),
                                [&](std::string_view) {
                                  if (++pieces == 20) throw Error("closed");
                                }),
               Error);
  const auto text = session.tokens();
  EXPECT_EQ(text.size(), 23u);
  EXPECT_EQ(session.Generate(Turn({}, 9), kNoEmit).tokens, Fresh(model, text, 9));
}

TEST(Session, TheSnapshotsUsedLongestAgoMakeRoom) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  EngineOptions options = Options();
  {
    Engine engine(model, nullptr, options);
    Session session(engine);
    session.Generate(Turn({1, 2, 3}, 20), kNoEmit);
    StatePool pool(model.config, {.slots = 1, .pages = 8, .roll_back = true});
    options.snapshot_bytes = 3 * (pool.ImageBytes(22, 0) + 23 * 4) + 8;
  }
  Engine engine(model, nullptr, options);
  Session session(engine);
  session.Generate(Turn({1, 2, 3}, 20), kNoEmit);
  const SnapshotId a = session.Snapshot(), b = session.Snapshot(), c = session.Snapshot();
  EXPECT_TRUE(session.Restore(a));
  const SnapshotId d = session.Snapshot();
  EXPECT_TRUE(session.Restore(a) && session.Restore(c) && session.Restore(d));
  EXPECT_FALSE(session.Restore(b));

  options.snapshot_bytes = 100;
  Engine poor(model, nullptr, options);
  Session forgetful(poor);
  forgetful.Generate(Turn({1, 2, 3}, 20), kNoEmit);
  EXPECT_FALSE(forgetful.Restore(forgetful.Snapshot()));
}

TEST(SessionFile, GoesOnWithTheSameBits) {
  const TemporaryDirectory directory;
  for (uint64_t seed = 0; seed < 30; seed++) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    std::vector<int32_t> text;
    {
      Engine engine(model, nullptr, Options(random() % 2));
      Session session(engine);
      if (random() % 8) session.Generate(Turn(RandomTokens(random, Pick(random, 1, 150), model.config), Pick(random, 0, 30)), kNoEmit);
      if (random() % 2) session.RollBack(std::min(Pick(random, 0, 1), static_cast<int64_t>(session.tokens().size())));
      session.Save(directory / "s");
      text = session.tokens();
    }
    const bool roll_back = random() % 2;
    Engine engine(model, nullptr, Options(roll_back));
    Session session(engine);
    session.Load(directory / "s");
    ASSERT_EQ(session.tokens(), text);
    text.push_back(0);
    ASSERT_EQ(session.Generate(Turn({0}, 20), kNoEmit).tokens, Fresh(model, text, 20));
    if (roll_back) {
      ASSERT_TRUE(session.RollBack(20));
      ASSERT_EQ(session.Generate(Turn({0}, 20), kNoEmit).tokens, Fresh(
                                                                     model,
                                                                     [&] {
                                                                       auto t = text;
                                                                       t.push_back(0);
                                                                       return t;
                                                                     }(),
                                                                     20));
    }
  }
}

// A long text, saved, and restored by another engine: the next token is the one that the first would have chosen, and so is every bit of state.
TEST(SessionFile, LongText) {
  const TemporaryDirectory directory;
  const int64_t length = std::getenv("BAMBA_FULL") ? 100'000 : 3'000;
  Config c = TinyConfig(3, {1});
  c.vocab = 31, c.dim = 16, c.ffn = 16, c.mamba_heads = 2, c.mamba_head_dim = 8, c.mamba_state = 8, c.mamba_groups = 1;
  c.heads = 1, c.kv_heads = 1, c.head_dim = 8, c.rope_dims = 4;
  const Model model = RandomModel(c, 1);
  EngineOptions options = Options();
  options.context = length + 10;
  Random random(1);
  Engine engine(model, nullptr, options);
  Session session(engine);
  session.Generate(Turn(RandomTokens(random, length, c), 1), kNoEmit);
  session.Save(directory / "first");
  const auto next = session.Generate(Turn({}, 5), kNoEmit).tokens;

  Engine other(model, nullptr, options);
  Session restored(other);
  restored.Load(directory / "first");
  restored.Save(directory / "again");
  EXPECT_EQ(ReadFile(directory / "first"), ReadFile(directory / "again"));
  EXPECT_EQ(restored.Generate(Turn({}, 5), kNoEmit).tokens, next);
  session.Save(directory / "first"), restored.Save(directory / "again");
  EXPECT_EQ(ReadFile(directory / "first"), ReadFile(directory / "again"));
}

TEST(SessionFile, ForeignAndDamagedOnesAreRefused) {
  const TemporaryDirectory directory;
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, Options());
  Session session(engine);
  session.Generate(Turn({1, 2, 3}, 40), kNoEmit);
  session.Save(directory / "s");
  const std::string whole = ReadFile(directory / "s");
  session.Load(directory / "s");
  const auto load = [&](const std::string& bytes) {
    WriteFile(directory / "broken", bytes);
    return ErrorOf([&] { session.Load(directory / "broken"); });
  };
  const auto before = session.tokens();

  for (size_t length = 0; length < whole.size(); length = length < 300 ? length + 1 : length + 97)
    ASSERT_THAT(load(whole.substr(0, length)), testing::AnyOf(HasSubstr("is cut short"), HasSubstr("is no saved session"))) << length;
  EXPECT_THAT(load(whole + '\0'), HasSubstr("is cut short or damaged"));
  EXPECT_THAT(load("once upon a time"), HasSubstr("is no saved session"));
  for (size_t at = 0; at < whole.size(); at = at < 300 ? at + 1 : at + 53) {
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    ASSERT_THAT(load(flipped), HasSubstr(directory / "broken")) << at;
  }
  EXPECT_EQ(session.tokens(), before);
  EXPECT_THAT(ErrorOf([&] { session.Load(directory / "missing"); }), HasSubstr("cannot be opened"));
  EXPECT_THAT(ErrorOf([&] { session.Save(directory / "no/such/place"); }), HasSubstr("cannot be created"));

  const Model same_shape = RandomModel(TinyConfig(2, {1}), 2);
  Engine other(same_shape, nullptr, Options());
  Session foreign(other);
  EXPECT_THAT(ErrorOf([&] { foreign.Load(directory / "s"); }), HasSubstr("belongs to another model"));

  EngineOptions small = Options();
  small.context = 20;
  Engine narrow(model, nullptr, small);
  Session full(narrow);
  EXPECT_THAT(ErrorOf([&] { full.Load(directory / "s"); }), HasSubstr("has 43 tokens, the context has room for 20"));
}

TEST(SessionFile, AnotherBuildOrArithmeticIsRefused) {
  const TemporaryDirectory directory;
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  StatePool pool(model.config, {.slots = 1, .pages = 4});
  const SequenceState sequence = pool.Allocate().value();
  const SessionIdentity identity{.build = 1, .model = 2, .arithmetic = "avx2"};
  WriteSession(directory / "s", identity, {}, pool, sequence);
  const auto open = [&](const SessionIdentity& other) { return ErrorOf([&] { SessionFile(directory / "s", other, model.config, pool, 10); }); };
  EXPECT_NO_THROW(SessionFile(directory / "s", identity, model.config, pool, 10));
  EXPECT_THAT(open({.build = 9, .model = 2, .arithmetic = "avx2"}), HasSubstr("another build of this program"));
  EXPECT_THAT(open({.build = 1, .model = 9, .arithmetic = "avx2"}), HasSubstr("another model"));
  EXPECT_THAT(open({.build = 1, .model = 2, .arithmetic = "avx512"}), HasSubstr("with the arithmetic avx2, now it is avx512; set BAMBA_SIMD=avx2"));
  EXPECT_THAT(open({.build = 1, .model = 2, .arithmetic = "avx2", .precise = false}), HasSubstr("was saved with --precise, now it is without; add it"));
}

TEST(SessionFile, TheModelsHashSeesWeightsShapesAndConfig) {
  ThreadPool threads(3);
  Model model = RandomModel(TinyConfig(2, {1}), 1);
  const uint64_t hash = ModelHash(model, threads);
  EXPECT_EQ(ModelHash(RandomModel(TinyConfig(2, {1}), 1), threads), hash);
  EXPECT_NE(ModelHash(RandomModel(TinyConfig(2, {1}), 1, Dtype::kBf16), threads), hash);
  EXPECT_NE(ModelHash(RandomModel(TinyConfig(2, {0}), 1), threads), hash);
  model.config.eps *= 2;
  EXPECT_NE(ModelHash(model, threads), hash);
  model.config.eps /= 2;
  EXPECT_EQ(ModelHash(model, threads), hash);
  model.weights.blocks[0].mamba.d.as<float>()[1] += 1e-3f;
  EXPECT_NE(ModelHash(model, threads), hash);
}

TEST(SessionFile, TheModelsHashSeesEveryNumberAndNoThreads) {
  Config config = TinyConfig(1, {});
  config.vocab = 10007;  // of more than one piece, the last one with a rest
  const Model model = RandomModel(config, 1);
  ThreadPool one(1), three(3);
  const uint64_t hash = ModelHash(model, one);
  EXPECT_EQ(ModelHash(model, three), hash);
  const Tensor embedding = model.weights.embedding.weight;
  Random random(1);
  for (int i = 0; i < 50; i++) {
    float& number = embedding.as<float>()[Pick(random, 0, embedding.size() - 1)];
    const float before = std::exchange(number, number + 1);
    EXPECT_NE(ModelHash(model, three), hash);
    number = before;
  }

  // Samples see a page's beginning and nothing else of it, but all of a small tensor.
  const uint64_t sampled = ModelHash(model, one, 0);
  EXPECT_EQ(ModelHash(model, three, 0), sampled);
  const auto changes = [&](const Tensor& tensor, int64_t i) {
    float& number = tensor.as<float>()[i];
    const float before = std::exchange(number, number + 1);
    const bool changed = ModelHash(model, three, 0) != sampled;
    number = before;
    return changed;
  };
  EXPECT_TRUE(changes(embedding, 300 * 1024));
  EXPECT_FALSE(changes(embedding, 300 * 1024 + 16));
  EXPECT_TRUE(changes(model.weights.blocks[0].mamba.d, 3));
}

// Killed at any moment while it saves, a process leaves the old file or the new one.
TEST(SessionFile, KilledWhileSaving) {
  const TemporaryDirectory directory;
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  Engine engine(model, nullptr, {.name = "m", .execution = {.threads = 1}, .context = 4096, .sequences = 1});
  Session session(engine);
  Random random(1);
  session.Generate(Turn(RandomTokens(random, 2000, model.config), 1), kNoEmit);
  session.Save(directory / "s");
  const std::string whole = ReadFile(directory / "s");
  int halves = 0;  // files that a kill left behind
  for (int i = 0; i < 2000 && halves < 10; i++) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0)
      while (true) session.Save(directory / "s");
    usleep(static_cast<useconds_t>(Pick(random, 100, 8000)));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    ASSERT_EQ(ReadFile(directory / "s") == whole, true);
    for (const auto& entry : fs::directory_iterator(directory.path())) {
      if (entry.path() == (directory / "s")) continue;
      fs::remove(entry.path());
      halves++;
    }
  }
  EXPECT_GT(halves, 0) << "no kill came while a file was being written: the test saw nothing";
}

}  // namespace
}  // namespace bamba
