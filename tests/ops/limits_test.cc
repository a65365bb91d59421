#include "ops/cpu/limits.h"

#include <gtest/gtest.h>

#include "ops/cpu/simd.h"
#include "ops/cpu/x86_limits.h"

namespace bamba::cpu {
namespace {

// Two operations for each product; the products follow from the sizes of the registers.
TEST(Limits, KernelsCountTheirOperations) {
  const double rounds = 100, lanes512 = 16;
  if (ArithmeticKernel kernel = Bf16DotKernel()) {
    EXPECT_EQ(kernel(100), rounds * 12 * lanes512 * 2 * 2);
  }
  if (ArithmeticKernel kernel = Int8DotKernel()) {
    EXPECT_EQ(kernel(100), rounds * 12 * lanes512 * 4 * 2);
  }
  if (ArithmeticKernel kernel = Bf16TileKernel()) {
    EXPECT_EQ(kernel(100), rounds * 4 * 16 * 16 * 32 * 2);
  }
  if (ArithmeticKernel kernel = Int8TileKernel()) {
    EXPECT_EQ(kernel(100), rounds * 4 * 16 * 16 * 64 * 2);
  }
}

TEST(Limits, RatesAreThoseOfAComputer) {
  ThreadPool threads(2);
  EXPECT_GT(ReadProbe(threads, 1 << 24).Bandwidth(0.01), 1e8);
  EXPECT_GT(FmaRate(threads, 0.01), 1e8);
  EXPECT_EQ(Bf16DotRate(threads, 0.01) > 1e8, Bf16DotKernel() != nullptr);
  EXPECT_EQ(Bf16TileRate(threads, 0.01) > 1e8, Bf16TileKernel() != nullptr);
}

// The peak beside which a product is measured is that of its own instructions. They differ by a factor of 1.5 at least (on some processors the dot products of
// bf16 are the slower ones), which a busy machine may blur but not turn round: the best of many short calls is taken.
TEST(Limits, NarrowWeightsHaveTheirOwnPeakUnlessPrecise) {
  ThreadPool threads(1);
  for (SimdLevel level : SimdLevels()) {
    SetSimd(level);
    const double f32 = LinearRate(threads, Dtype::kF32, false), bf16 = LinearRate(threads, Dtype::kBf16, false);
    const double precise = LinearRate(threads, Dtype::kBf16, true), f16 = LinearRate(threads, Dtype::kF16, false);
    EXPECT_EQ(bf16 > 1.25 * f32 || bf16 < 0.8 * f32, level >= SimdLevel::kAvx512Bf16) << Name(level) << ": " << bf16 << " and " << f32;
    EXPECT_LT(precise, 1.25 * f32) << Name(level);
    EXPECT_LT(f16, 1.25 * f32) << Name(level);
  }
  SetSimd(SimdLevels().back());
}

}  // namespace
}  // namespace bamba::cpu
