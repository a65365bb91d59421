#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace bamba {
namespace {

using testing::ElementsAre;

std::vector<int64_t> Rows(const std::vector<int64_t>& unread, StepRows step) {
  std::vector<int64_t> rows(unread.size());
  ShareRows(unread, step, rows);
  return rows;
}

TEST(CountAdmitted, InOrderAsFarAsSlotsAndPagesGo) {
  const std::vector<Demand> waiting = {{1, 10}, {2, 5}, {1, 1}};
  EXPECT_EQ(CountAdmitted(waiting, {4, 16}), 3u);
  EXPECT_EQ(CountAdmitted(waiting, {4, 15}), 2u);
  EXPECT_EQ(CountAdmitted(waiting, {2, 100}), 1u);
  EXPECT_EQ(CountAdmitted(waiting, {0, 100}), 0u);
  EXPECT_EQ(CountAdmitted({}, {4, 16}), 0u);
}

TEST(CountAdmitted, NobodyOvertakes) {
  const std::vector<Demand> waiting = {{3, 1}, {1, 1}};
  EXPECT_EQ(CountAdmitted(waiting, {2, 100}), 0u) << "the small one would fit, but the large one came first";
}

TEST(ShareRows, TextsOneRowEachPromptsTheRest) {
  EXPECT_THAT(Rows({1, 1, 1}, {256, 32}), ElementsAre(1, 1, 1));
  EXPECT_THAT(Rows({1000}, {256, 32}), ElementsAre(256));
  EXPECT_THAT(Rows({100}, {256, 32}), ElementsAre(100));
  EXPECT_THAT(Rows({1, 1000, 1}, {256, 32}), ElementsAre(1, 32, 1)) << "a long prompt doesn't hold up texts";
  EXPECT_THAT(Rows({}, {256, 32}), ElementsAre());
}

TEST(ShareRows, PromptsShareEquallyAndShortOnesLeaveTheirRest) {
  EXPECT_THAT(Rows({1000, 1000}, {256, 32}), ElementsAre(128, 128));
  EXPECT_THAT(Rows({1000, 20, 1000}, {256, 32}), ElementsAre(118, 20, 118)) << "a short prompt is not kept waiting by long ones";
  EXPECT_THAT(Rows({2, 2, 2}, {256, 32}), ElementsAre(2, 2, 2));
  EXPECT_THAT(Rows({50, 50, 50}, {4, 4}), ElementsAre(2, 1, 1));
  EXPECT_THAT(Rows({50, 1, 50}, {256, 1}), ElementsAre(1, 1, 1)) << "each sequence gets on, however few rows there are";
}

// For anything: nobody starves, nobody gets more than he needs, no budget is passed, none is wasted, and no prompt has two rows more than another that wants
// more.
TEST(ShareRows, AnyMixture) {
  std::mt19937_64 random(1);
  const auto pick = [&](int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); };
  for (int trial = 0; trial < 20000; trial++) {
    std::vector<int64_t> unread(static_cast<size_t>(pick(1, 40)));
    for (int64_t& n : unread) n = random() % 2 ? 1 : pick(1, random() % 2 ? 10 : 2000);
    const auto sequences = static_cast<int64_t>(unread.size());
    const StepRows step{.most = sequences + pick(0, 300), .prompts_beside_text = pick(1, 64)};
    const auto rows = Rows(unread, step);
    int64_t of_prompts = 0, wanted = 0, prompts = 0, least_hungry = 1 << 20, largest = 0;
    for (size_t i = 0; i < rows.size(); i++) {
      ASSERT_GE(rows[i], 1);
      ASSERT_LE(rows[i], unread[i]);
      if (unread[i] == 1) continue;
      prompts++, of_prompts += rows[i], wanted += unread[i], largest = std::max(largest, rows[i]);
      if (rows[i] < unread[i]) least_hungry = std::min(least_hungry, rows[i]);
    }
    ASSERT_LE(std::accumulate(rows.begin(), rows.end(), int64_t{0}), step.most);
    const int64_t texts = sequences - prompts, room = step.most - texts;
    const int64_t budget = texts > 0 ? std::min(room, std::max(prompts, step.prompts_beside_text)) : room;
    ASSERT_EQ(of_prompts, std::min(wanted, budget));
    ASSERT_LE(largest, least_hungry + 1);
  }
}

}  // namespace
}  // namespace bamba
