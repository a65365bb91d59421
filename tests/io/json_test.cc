#include "io/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace bamba {
namespace {

TEST(JsonLine, NumbersAreTheShortestThatReadBack) {
  EXPECT_EQ(JsonLine(json::array{3.9, 0.1, 1.0, -2.5e-7, 1e300, 7}), "[3.9,0.1,1.0,-2.5e-07,1e+300,7]");
  for (const double x : {1.0 / 3, 5e-324, std::numeric_limits<double>::max(), -0.0}) {
    const double back = json::parse(JsonLine(x)).as_double();
    EXPECT_EQ(back, x);
    EXPECT_EQ(std::signbit(back), std::signbit(x));
  }
}

TEST(JsonLine, WhatIsNotFiniteIsStillJson) {
  EXPECT_EQ(JsonLine(std::nan("")), "null");
  EXPECT_EQ(json::parse(JsonLine(-HUGE_VAL)).as_double(), -HUGE_VAL);
}

TEST(JsonLine, IsWhatBoostWritesButForNumbers) {
  const json::value value = json::parse(R"({"a":[],"b":{},"c":[1,[true,null],{"d":"\"\u0001é"}],"\"":18446744073709551615})");
  EXPECT_EQ(JsonLine(value), json::serialize(value));
}

}  // namespace
}  // namespace bamba
