#include "engine/narrow.h"

#include <gtest/gtest.h>

#include <functional>

#include "io/checkpoint.h"
#include "tests/engine/player.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

constexpr int64_t kRoom = int64_t{1} << 30;

// A model of bf16 numbers, in a file of f32.
struct WidenedModel {
  TemporaryDirectory directory;
  Model model;

  explicit WidenedModel(
      bool tied = false, const std::function<void(Model&)>& change = [](Model&) {}) {
    Config config = TinyConfig(3, {1});
    config.tied = tied;
    Model narrow = RandomModel(config, 5, Dtype::kBf16), wide = ConvertModel(narrow, Dtype::kF32);
    TieHead(config, wide.weights);
    change(wide);
    SaveModel(wide, directory / "wide", {});
    model = LoadModel(directory / "wide");
  }
};

std::vector<float> LogitsOf(const Model& model, int64_t tokens, int threads) {
  Player player(model, {.slots = 1, .pages = PagesFor(tokens)}, threads, tokens);
  SequenceState sequence = player.Begin();
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; i++) ids.push_back(static_cast<int32_t>(i * 37 % model.config.vocab));
  return player.Play({{&sequence, ids}}, tokens)[0];
}

TEST(HoldAsBf16, ComputesTheSameBits) {
  for (bool tied : {false, true}) {
    WidenedModel widened(tied);
    Model& model = widened.model;
    std::vector<std::vector<float>> before;
    for (int64_t tokens : {1, 5, 60}) before.push_back(LogitsOf(model, tokens, 1));
    const void* const embedding = model.weights.embedding.weight.data();

    Execution execution{.threads = 2, .precise = false};
    int64_t told = 0, all = 0;
    ASSERT_TRUE(HoldAsBf16(model, execution, kRoom, [&](int64_t done, int64_t of) { told = done, all = of; }));
    EXPECT_TRUE(execution.precise);
    EXPECT_EQ(2 * execution.held, all);
    EXPECT_EQ(model.stored, Dtype::kF32);
    EXPECT_EQ(told, all);
    EXPECT_GT(all, 0);
    EXPECT_EQ(model.weights.blocks[0].mamba.in_proj.weight.dtype(), Dtype::kBf16);
    EXPECT_EQ(model.weights.blocks[0].mamba.norm.dtype(), Dtype::kF32);
    EXPECT_EQ(model.weights.head.weight.dtype(), Dtype::kBf16);
    // Of an embedding apart from the head single rows are read: it stays in its file.
    EXPECT_EQ(model.weights.embedding.weight.data() == embedding, !tied);
    EXPECT_EQ(model.weights.embedding.weight.data() == model.weights.head.weight.data(), tied);
    size_t i = 0;
    for (int64_t tokens : {1, 5, 60}) EXPECT_EQ(LogitsOf(model, tokens, 2), before[i++]) << tokens << " tokens";
  }
}

// That nothing changes, also where the reason is found after much was read.
void ExpectLeftAlone(Model model, int64_t room = kRoom) {
  const std::vector<float> before = LogitsOf(model, 40, 1);
  const void* const first = model.weights.blocks[0].mamba.in_proj.weight.data();
  Execution execution{.threads = 2, .precise = false};
  EXPECT_FALSE(HoldAsBf16(model, execution, room));
  EXPECT_FALSE(execution.precise);
  EXPECT_FALSE(model.stored);
  EXPECT_EQ(model.weights.blocks[0].mamba.in_proj.weight.data(), first);
  EXPECT_EQ(LogitsOf(model, 40, 1), before);
}

TEST(HoldAsBf16, LeavesOtherModelsAlone) {
  ExpectLeftAlone(WidenedModel(false, [](Model& m) { m.weights.head.weight.as<float>()[m.weights.head.weight.size() - 1] = 1 + 0x1p-23f; }).model);
  ExpectLeftAlone(WidenedModel(false, [](Model& m) { m.weights.blocks[0].mamba.in_proj.weight.as<float>()[0] = 0.1f; }).model);
  ExpectLeftAlone(WidenedModel().model, 1000);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16}) ExpectLeftAlone(RandomModel(TinyConfig(3, {1}), 5, dtype));
}

}  // namespace
}  // namespace bamba
