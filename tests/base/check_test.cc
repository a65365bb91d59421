#include "base/check.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace bamba {
namespace {

TEST(CheckDeathTest, SaysWhereAndWhy) {
  int rows = 3;
  EXPECT_DEATH(CHECK(rows == 4), "check_test.cc:[0-9]+: broken invariant: rows == 4");
  EXPECT_DEATH(CHECK_EQ(rows, 4), "3 against 4");
  EXPECT_DEATH(CHECK_MSG(rows > 3, "{} rows of {}", rows, "x"), "rows > 3: 3 rows of x");
}

TEST(CheckTest, LeavesTheElseOfItsCallerAlone) {
  bool reached = false;
  if (reached)
    CHECK(true);
  else
    reached = true;
  EXPECT_TRUE(reached);
}

TEST(ErrorTest, TextWithBracesIsTextAndAFormatIsAFormat) {
  EXPECT_STREQ(Error(std::string("{}")).what(), "{}");
  EXPECT_STREQ(Error("{}: found {}, expected {}", "f", 1, 2).what(), "f: found 1, expected 2");
}

}  // namespace
}  // namespace bamba
