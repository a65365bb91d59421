#pragma once

#include <bit>
#include <complex>
#include <cstddef>
#include <cstdint>

namespace bamba {

// kF64 and kC128 (pairs of doubles) exist for the reference device of the tests alone.
enum class Dtype : uint8_t { kF32, kBf16, kF16, kF64, kC128, kI32, kI64 };

constexpr size_t SizeOf(Dtype d) {
  switch (d) {
    case Dtype::kF32:
    case Dtype::kI32: return 4;
    case Dtype::kBf16:
    case Dtype::kF16: return 2;
    case Dtype::kF64:
    case Dtype::kI64: return 8;
    case Dtype::kC128: return 16;
  }
  return 0;
}

// The lower-case name that flags, config.json and messages use: "f32", "bf16", …
const char* Name(Dtype d);

// bfloat16: the upper half of a float. Rounding is to nearest, ties to even; NaN stays NaN.
struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  explicit Bf16(float x) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<uint16_t>(u >> 16 | 0x40);
    else
      bits = static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE half precision. Rounding is to nearest, ties to even; NaN stays NaN; too large becomes infinity.
struct F16 {
  uint16_t bits = 0;
  F16() = default;
  explicit F16(float x);
  explicit operator float() const;
};

template <typename T>
inline constexpr Dtype kDtypeOf = Dtype::kF32;
template <>
inline constexpr Dtype kDtypeOf<Bf16> = Dtype::kBf16;
template <>
inline constexpr Dtype kDtypeOf<F16> = Dtype::kF16;
template <>
inline constexpr Dtype kDtypeOf<double> = Dtype::kF64;
template <>
inline constexpr Dtype kDtypeOf<std::complex<double>> = Dtype::kC128;
template <>
inline constexpr Dtype kDtypeOf<int32_t> = Dtype::kI32;
template <>
inline constexpr Dtype kDtypeOf<int64_t> = Dtype::kI64;

// Converts n numbers between any two of f32, bf16, f16 and f64 (complex takes and gives the real part). `from` and `to` must not overlap.
void Convert(const void* from, Dtype from_dtype, void* to, Dtype to_dtype, size_t n);

}  // namespace bamba
