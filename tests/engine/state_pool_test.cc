#include "engine/state_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "base/error.h"
#include "engine/plan.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

using testing::HasSubstr;

TEST(StatePool, ShapesOfAHybrid) {
  const Config c = TinyConfig(3, {1});
  StatePool plain(c, {.slots = 2, .pages = 5});
  const MambaState& m = plain.states().mamba[0];
  EXPECT_EQ(m.conv.ShapeString(), "[2, 4, 192]");
  EXPECT_EQ(m.xbc.ShapeString(), "[2, 32, 192]");
  EXPECT_EQ(m.dt.ShapeString(), "[2, 32, 6]");
  EXPECT_EQ(m.ssm.ShapeString(), "[2, 1, 6, 16, 24]");
  EXPECT_EQ(plain.states().kv[2].k.ShapeString(), "[5, 64, 2, 12]");
  EXPECT_FALSE(plain.states().mamba[1].ssm);
  EXPECT_FALSE(plain.states().kv[0].k);

  StatePool history(c, {.slots = 2, .pages = 5, .roll_back = true});
  EXPECT_EQ(history.states().mamba[0].conv.ShapeString(), "[2, 36, 192]");
  EXPECT_EQ(history.states().mamba[0].xbc.ShapeString(), "[2, 64, 192]");
  EXPECT_EQ(history.states().mamba[0].ssm.ShapeString(), "[2, 2, 6, 16, 24]");
}

TEST(StatePool, SlotsAndPagesComeBack) {
  StatePool pool(TinyConfig(3, {1}), {.slots = 2, .pages = 3});
  auto a = pool.Allocate(), b = pool.Allocate();
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->slot, b->slot);
  EXPECT_FALSE(pool.Allocate());
  EXPECT_TRUE(pool.Grow(*a, kKvBlock + 1));
  EXPECT_EQ(a->pages.size(), 2u);
  EXPECT_FALSE(pool.Grow(*b, kKvBlock + 1));
  EXPECT_TRUE(b->pages.empty());
  EXPECT_TRUE(pool.Grow(*b, kKvBlock));
  StatePool::Advance(*b, kKvBlock);
  EXPECT_FALSE(pool.Grow(*b, 1));
  pool.Free(*a);
  EXPECT_TRUE(pool.Grow(*b, 1));
  EXPECT_TRUE(pool.Grow(*b, kKvBlock + 1));
  EXPECT_EQ(std::set<int32_t>(b->pages.begin(), b->pages.end()).size(), 3u);
  EXPECT_TRUE(pool.Allocate());
}

TEST(StatePool, AForkTakesASlotAndPagesOrNothing) {
  StatePool pool(TinyConfig(3, {1}), {.slots = 3, .pages = 5});
  auto a = pool.Allocate();
  ASSERT_TRUE(pool.Grow(*a, kKvBlock + 1));
  StatePool::Advance(*a, kKvBlock + 1);
  auto b = pool.Fork(*a);
  ASSERT_TRUE(b);
  EXPECT_EQ(b->position, kKvBlock + 1);
  EXPECT_NE(b->slot, a->slot);
  EXPECT_EQ(std::set<int32_t>({a->pages[0], a->pages[1], b->pages[0], b->pages[1]}).size(), 4u);
  EXPECT_FALSE(pool.Fork(*a)) << "one page is left";
  pool.Free(*b);
  auto c = pool.Allocate(), d = pool.Allocate();
  ASSERT_TRUE(c && d) << "the fork that failed has given its slot back";
  EXPECT_FALSE(pool.Fork(*a)) << "no slot is left";
}

TEST(StatePool, AnImageHasTheSizeThatIsAnnouncedAndNoneOfTheSlotsPast) {
  const Config config = TinyConfig(3, {1});
  StatePool pool(config, {.slots = 2, .pages = 8, .roll_back = true});
  for (int64_t position : {0, 1, 31, 32, 33, 63, 64, 65, 96, 130}) {
    for (int64_t back : {0, 1, 31, 32}) {
      if (back > position) continue;
      SequenceState sequence = pool.Allocate().value();
      ASSERT_TRUE(pool.Grow(sequence, position));
      StatePool::Advance(sequence, position);
      int64_t bytes = 0;
      pool.Save(sequence, position - back, [&](const void*, size_t n) { bytes += static_cast<int64_t>(n); });
      EXPECT_EQ(bytes, pool.ImageBytes(position, position - back)) << position << " " << back;

      std::vector<char> image(static_cast<size_t>(bytes)), again;
      for (size_t i = 0; i < image.size(); i++) image[i] = static_cast<char>(i * 7 + 1);
      SequenceState other = pool.Allocate().value();
      ASSERT_TRUE(pool.Restore(other, position, position - back, image));
      EXPECT_EQ(pool.Reach(other), position - back);
      pool.Save(other, position - back,
                [&](const void* data, size_t n) { again.insert(again.end(), static_cast<const char*>(data), static_cast<const char*>(data) + n); });
      EXPECT_EQ(image, again);
      pool.Free(other), pool.Free(sequence);
    }
  }
}

TEST(StatePool, WithoutAttentionThereIsNoLimit) {
  StatePool pool(TinyConfig(2, {}), {.slots = 1});
  auto sequence = pool.Allocate();
  EXPECT_TRUE(pool.Grow(*sequence, std::numeric_limits<int64_t>::max()));
  EXPECT_TRUE(sequence->pages.empty());
}

TEST(MemoryPlan, CountsWhatThePoolTakes) {
  Config c = TinyConfig(3, {1});
  const Model model = RandomModel(c, 1, Dtype::kBf16);
  const PoolSize size{.slots = 3, .pages = 7};
  const MemoryPlan plan = PlanMemory(model, size, 1000);
  EXPECT_EQ(plan.weights, 2 * ParameterCount(c));
  EXPECT_EQ(plan.workspace, 1000);
  const auto taken = static_cast<int64_t>(StatePool::Bytes(c, size));
  EXPECT_NEAR(plan.states() + plan.kv(), taken, static_cast<int64_t>(Workspace::kAlign) * 10);  // the alignment of each of 10 tensors
  EXPECT_EQ(plan.total(), plan.weights + plan.states() + plan.kv() + 1000);

  EXPECT_NO_THROW(CheckFits(plan, plan.total(), "m"));
  EXPECT_THROW(CheckFits(plan, plan.total() - 1, "m"), Error);
}

TEST(MemoryPlan, WhatDoesNotFitIsToldInParts) {
  const auto told = [](const MemoryPlan& plan) { return ErrorOf([&] { CheckFits(plan, 0, "m"); }); };
  EXPECT_THAT(told({.weights = 2000}), HasSubstr("needs 2.00 kB of memory (weights 2.00 kB), this machine has 0 bytes left"));
  EXPECT_THAT(told({.slot = 5, .page = 7, .slots = 1, .pages = 2}), HasSubstr("(state of 1 sequence 5 bytes, keys and values of 128 tokens 14 bytes)"));
  EXPECT_THAT(told({.slot = 5, .slots = 2, .workspace = 1}), HasSubstr("(state of 2 sequences 10 bytes, temporaries 1 bytes)"));
}

TEST(MemoryPlan, AbsurdSizesAreAnErrorAndNoOverflow) {
  const Model model = RandomModel(TinyConfig(3, {1}), 1);
  const MemoryPlan plan = PlanMemory(model, {.slots = 1, .pages = std::numeric_limits<int64_t>::max() / 2}, 0);
  EXPECT_EQ(plan.total(), std::numeric_limits<int64_t>::max());
  EXPECT_THROW(CheckFits(plan, int64_t{1} << 50, "m"), Error);
}

}  // namespace
}  // namespace bamba
