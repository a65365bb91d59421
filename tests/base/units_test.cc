#include "base/units.h"

#include <gtest/gtest.h>

#include <limits>

namespace bamba {
namespace {

TEST(UnitsTest, BytesHaveThreeDigitsAndDecimalUnits) {
  EXPECT_EQ(HumanBytes(0), "0 bytes");
  EXPECT_EQ(HumanBytes(999), "999 bytes");
  EXPECT_EQ(HumanBytes(1000), "1.00 kB");
  EXPECT_EQ(HumanBytes(19.56e9), "19.6 GB");
  EXPECT_EQ(HumanBytes(137363456), "137 MB");
  EXPECT_EQ(HumanBytes(9.99e23), "999000 EB");
}

// 999.6 of a unit would print as 1000 of it: the next unit takes over where rounding does.
TEST(UnitsTest, RoundingNeverShowsAThousand) {
  EXPECT_EQ(HumanBytes(999'499), "999 kB");
  EXPECT_EQ(HumanBytes(999'600), "1.00 MB");
  EXPECT_EQ(HumanBytes(9'996), "10.0 kB");
  EXPECT_EQ(HumanBytes(99'960), "100 kB");
}

TEST(UnitsTest, Counts) {
  EXPECT_EQ(HumanCount(740), "740");
  EXPECT_EQ(HumanCount(16251632), "16.3 M");
  EXPECT_EQ(HumanCount(9.78e9), "9.78 B");
  EXPECT_EQ(HumanCount(-2500), "-2.50 k");
}

TEST(UnitsTest, RatesHaveThreeDigits) {
  EXPECT_EQ(HumanRate(0), "0.00");
  EXPECT_EQ(HumanRate(2.084), "2.08");
  EXPECT_EQ(HumanRate(9.996), "10.0");
  EXPECT_EQ(HumanRate(99.96), "100");
  EXPECT_EQ(HumanRate(16251), "16.3 k");
}

TEST(UnitsTest, Seconds) {
  EXPECT_EQ(HumanSeconds(0.0000214), "21 µs");
  EXPECT_EQ(HumanSeconds(0.0021), "2.1 ms");
  EXPECT_EQ(HumanSeconds(0.021), "21 ms");
  EXPECT_EQ(HumanSeconds(4.21), "4.2 s");
  EXPECT_EQ(HumanSeconds(59.97), "1 min 00 s");
  EXPECT_EQ(HumanSeconds(185), "3 min 05 s");
  EXPECT_EQ(HumanSeconds(3599.6), "1 h 00 min");
}

TEST(UnitsTest, ThousandsGroupEveryThreeDigits) {
  EXPECT_EQ(Thousands(0), "0");
  EXPECT_EQ(Thousands(999), "999");
  EXPECT_EQ(Thousands(1000), "1,000");
  EXPECT_EQ(Thousands(134217728), "134,217,728");
  EXPECT_EQ(Thousands(-100), "-100");
  EXPECT_EQ(Thousands(-1000), "-1,000");
  EXPECT_EQ(Thousands(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

}  // namespace
}  // namespace bamba
