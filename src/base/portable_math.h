#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

namespace bamba {

// Exponential and logarithm of IEEE additions, multiplications and divisions alone: the same bits on every machine, which the C library's don't promise.
// Whatever a choice of token or a reported probability depends on goes through these, on a GPU too (which calls what is constexpr).

// e^x for x ≤ 0 (−∞ too, no NaN), 0 below −708; relative error < 2^−51. Without a branch, so that a loop over it becomes vector code; the bits stay.
constexpr double Exp(double x) {
  // x = k ln 2 + r with |r| ≤ ln 2 / 2; the first part of ln 2 has enough trailing zeros for k times it to be exact.
  constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;  // a sum with it has no digits after the point, and an integer in its low bits
  // 1/n! down from the 13th: the term after it is below 2^−58.
  constexpr std::array kTaylor = {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
                                  1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       0.5,          1.0,         1.0};
  // All ones from −708 up, else zero. Not by a comparison, which might trap and so keeps compilers from vector code.
  const uint64_t kept = (std::bit_cast<uint64_t>(x + 708) >> 63) - 1;
  const double in_range = std::bit_cast<double>(std::bit_cast<uint64_t>(x) & kept);
  const double shifted = in_range * kLog2e + kRound, k = shifted - kRound;
  const double r = (in_range - k * kLn2High) - k * kLn2Low;
  double e = kTaylor[0];
  for (size_t i = 1; i < kTaylor.size(); i++) e = e * r + kTaylor[i];
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) + 1023) << 52);
  return std::bit_cast<double>(std::bit_cast<uint64_t>(e * power) & kept);
}

// log x for normal x > 0; relative error < 2^−50.
constexpr double Log(double x) {
  // x = 2^k m with m in [√½, √2), and log m = 2 atanh(s) = 2 (s + s³/3 + s⁵/5 + …); |s| < 0.172, so the term after s²¹/21 is below 2^−60 of the first.
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd, kMantissa = (uint64_t{1} << 52) - 1;
  const uint64_t above = std::bit_cast<uint64_t>(x) - kSqrtHalf;
  const double k = static_cast<double>(static_cast<int64_t>(above) >> 52);
  const double m = std::bit_cast<double>((above & kMantissa) + kSqrtHalf);
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double sum = 0;
  for (int n = 21; n >= 3; n -= 2) sum = (sum + 1.0 / n) * s2;
  return k * kLn2High + (k * kLn2Low + (2 * s + 2 * s * sum));
}

// The largest; numbers must not be NaN. In lanes, for vector code: the result does not depend on the order.
inline float Max(std::span<const float> numbers) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  for (float& lane : lanes) lane = numbers[0];
  size_t i = 0;
  for (; i + kLanes <= numbers.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; lane++) lanes[lane] = numbers[i + lane] > lanes[lane] ? numbers[i + lane] : lanes[lane];
  for (; i < numbers.size(); i++) lanes[0] = numbers[i] > lanes[0] ? numbers[i] : lanes[0];
  for (float lane : lanes) lanes[0] = lane > lanes[0] ? lane : lanes[0];
  return lanes[0];
}

}  // namespace bamba
