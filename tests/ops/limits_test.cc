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

// The peak beside which a product is measured is that of its own instructions.
TEST(Limits, NarrowWeightsHaveTheirOwnPeakUnlessPrecise) {
  for (SimdLevel level : SimdLevels()) {
    SetSimd(level);
    const ArithmeticRate narrow = level == SimdLevel::kAmx ? Bf16TileRate : level == SimdLevel::kAvx512Bf16 ? Bf16DotRate : FmaRate;
    EXPECT_EQ(LinearRate(Dtype::kBf16, false), narrow) << Name(level);
    EXPECT_EQ(LinearRate(Dtype::kBf16, true), FmaRate) << Name(level);
    for (Dtype dtype : {Dtype::kF32, Dtype::kF16}) EXPECT_EQ(LinearRate(dtype, false), FmaRate) << Name(level);
  }
  SetSimd(SimdLevels().back());
}

}  // namespace
}  // namespace bamba::cpu
