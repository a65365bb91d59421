#include "base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace bamba {
namespace {

// A binary floating-point format, and what its bits mean, straight from the definition.
struct Format {
  int exponent_bits, mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }

  double Value(uint16_t bits) const {
    int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
    double sign = bits >> 15 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
    double significand = exponent ? 1 + std::ldexp(mantissa, -mantissa_bits) : std::ldexp(mantissa, -mantissa_bits);
    return sign * std::ldexp(significand, std::max(exponent, 1) - bias());
  }

  // The positive finite numbers are in the order of their bits, and past the largest one stands infinity at the place of the next number.
  double Neighbour(uint16_t bits) const {
    double value = Value(bits);
    return std::isinf(value) ? std::ldexp(1.0, 1 << (exponent_bits - 1)) : value;
  }
};

constexpr Format kBf16Format{8, 7}, kF16Format{5, 10};

template <typename T>
const Format& FormatOf() {
  return std::is_same_v<T, Bf16> ? kBf16Format : kF16Format;
}

template <typename T>
T FromBits(uint32_t bits) {
  T x;
  x.bits = static_cast<uint16_t>(bits);
  return x;
}

template <typename T>
class HalfTest : public testing::Test {};
using Halves = testing::Types<Bf16, F16>;
TYPED_TEST_SUITE(HalfTest, Halves);

TYPED_TEST(HalfTest, EveryPatternMeansWhatTheFormatSaysAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    TypeParam x = FromBits<TypeParam>(bits);
    float value = static_cast<float>(x);
    double expected = FormatOf<TypeParam>().Value(x.bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(TypeParam(value)))) << bits;
      continue;
    }
    ASSERT_EQ(value, expected) << bits;
    ASSERT_EQ(std::signbit(value), bits >> 15 == 1) << bits;
    ASSERT_EQ(TypeParam(value).bits, bits);
  }
}

// Between each number and the next: the midpoint goes to the even one, a float below it down and a float above it up. This includes the subnormal
// numbers, the step to infinity, and zero.
TYPED_TEST(HalfTest, RoundsToNearestAndTiesToEven) {
  const Format& format = FormatOf<TypeParam>();
  uint32_t infinity = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
  for (uint32_t bits = 0; bits < infinity; bits++) {
    double low = format.Neighbour(static_cast<uint16_t>(bits)), high = format.Neighbour(static_cast<uint16_t>(bits + 1));
    float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(middle, (low + high) / 2) << "the midpoint is a float";
    for (uint32_t sign : {0u, 0x8000u}) {
      float s = sign ? -1.0f : 1.0f;
      ASSERT_EQ(TypeParam(s * middle).bits, sign | (bits % 2 == 0 ? bits : bits + 1)) << middle;
      ASSERT_EQ(TypeParam(s * std::nextafter(middle, 0.0f)).bits, sign | bits) << middle;
      ASSERT_EQ(TypeParam(s * std::nextafter(middle, INFINITY)).bits, sign | (bits + 1)) << middle;
    }
  }
}

TYPED_TEST(HalfTest, NaNStaysNaNWhateverItsPayload) {
  for (uint32_t bits : {0x7f800001u, 0x7f80ffffu, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu})
    EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(std::bit_cast<float>(bits))))) << bits;
}

TYPED_TEST(HalfTest, TheLargestFloatsBecomeInfinity) {
  EXPECT_EQ(static_cast<float>(TypeParam(std::numeric_limits<float>::max())), INFINITY);
  EXPECT_EQ(static_cast<float>(TypeParam(std::numeric_limits<float>::lowest())), -INFINITY);
  EXPECT_EQ(static_cast<float>(TypeParam(INFINITY)), INFINITY);
}

template <typename T>
std::vector<double> Through(Dtype dtype, const std::vector<T>& in) {
  std::vector<char> between(in.size() * SizeOf(dtype));
  std::vector<double> out(in.size());
  Convert(in.data(), kDtypeOf<T>, between.data(), dtype, in.size());
  Convert(between.data(), dtype, out.data(), Dtype::kF64, in.size());
  return out;
}

TEST(ConvertTest, KeepsWhatTheTargetCanHold) {
  const std::vector<float> exact = {0, -0.0f, 1, -1.5f, 0.25f, 96, -0.0078125f};
  const std::vector<double> expected(exact.begin(), exact.end());
  for (Dtype d : {Dtype::kF32, Dtype::kBf16, Dtype::kF16, Dtype::kF64, Dtype::kC128}) EXPECT_EQ(Through(d, exact), expected) << Name(d);
}

TEST(ConvertTest, DoubleAndComplexLoseNothing) {
  const std::vector<double> precise = {1.0 / 3, 1e300, -1e-300, 1 + 0x1p-52};
  EXPECT_EQ(Through(Dtype::kF64, precise), precise);
  EXPECT_EQ(Through(Dtype::kC128, precise), precise);
}

TEST(ConvertTest, ComplexGivesItsRealPart) {
  const std::vector<std::complex<double>> in = {{1.5, 7}, {-2, 1e-30}};
  EXPECT_EQ(Through(Dtype::kF32, in), (std::vector<double>{1.5, -2}));
  EXPECT_EQ(Through(Dtype::kF64, in), (std::vector<double>{1.5, -2}));
}

TEST(ConvertTest, RoundsAsTheTypeDoes) {
  const std::vector<float> in = {1.00390625f, 3.14159274f, 70000, 1e-7f};
  for (Dtype d : {Dtype::kBf16, Dtype::kF16}) {
    std::vector<double> out = Through(d, in);
    for (size_t i = 0; i < in.size(); i++)
      EXPECT_EQ(out[i], d == Dtype::kBf16 ? static_cast<float>(Bf16(in[i])) : static_cast<float>(F16(in[i]))) << Name(d) << " " << in[i];
  }
}

TEST(ConvertTest, NothingIsNothing) { Convert(nullptr, Dtype::kF32, nullptr, Dtype::kF32, 0); }

}  // namespace
}  // namespace bamba
