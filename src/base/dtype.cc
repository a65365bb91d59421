#include "base/dtype.h"

#include <cstring>

#include "base/check.h"

namespace bamba {

const char* Name(Dtype d) {
  switch (d) {
    case Dtype::kF32: return "f32";
    case Dtype::kBf16: return "bf16";
    case Dtype::kF16: return "f16";
    case Dtype::kF64: return "f64";
    case Dtype::kC128: return "c128";
    case Dtype::kI32: return "i32";
    case Dtype::kI64: return "i64";
  }
  return "?";
}

F16::F16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000) {  // rounds past 65504
    bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // subnormal or zero: adding 0.5 lets the fp32 adder round at 2^-24
    float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  } else {
    bits = static_cast<uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
  }
}

F16::operator float() const {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 0) {
    float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

namespace {

template <typename From, typename To>
void ConvertAs(const void* from, void* to, size_t n) {
  const From* in = static_cast<const From*>(from);
  To* out = static_cast<To*>(to);
  for (size_t i = 0; i < n; i++) {
    if constexpr (std::is_same_v<From, std::complex<double>> && std::is_same_v<To, double>)
      out[i] = in[i].real();
    else if constexpr (std::is_same_v<From, std::complex<double>>)
      out[i] = To(static_cast<float>(in[i].real()));
    else if constexpr (std::is_same_v<From, double> && (std::is_same_v<To, double> || std::is_same_v<To, std::complex<double>>))
      out[i] = To(in[i]);
    else if constexpr (std::is_same_v<To, std::complex<double>>)
      out[i] = To(static_cast<double>(static_cast<float>(in[i])));
    else
      out[i] = To(static_cast<float>(in[i]));
  }
}

template <typename From>
void ConvertFrom(const void* from, void* to, Dtype to_dtype, size_t n) {
  switch (to_dtype) {
    case Dtype::kF32: return ConvertAs<From, float>(from, to, n);
    case Dtype::kBf16: return ConvertAs<From, Bf16>(from, to, n);
    case Dtype::kF16: return ConvertAs<From, F16>(from, to, n);
    case Dtype::kF64: return ConvertAs<From, double>(from, to, n);
    case Dtype::kC128: return ConvertAs<From, std::complex<double>>(from, to, n);
    default: CHECK_MSG(false, "no conversion to {}", Name(to_dtype));
  }
}

}  // namespace

void Convert(const void* from, Dtype from_dtype, void* to, Dtype to_dtype, size_t n) {
  if (from_dtype == to_dtype) {
    if (n) std::memcpy(to, from, n * SizeOf(to_dtype));
    return;
  }
  switch (from_dtype) {
    case Dtype::kF32: return ConvertFrom<float>(from, to, to_dtype, n);
    case Dtype::kBf16: return ConvertFrom<Bf16>(from, to, to_dtype, n);
    case Dtype::kF16: return ConvertFrom<F16>(from, to, to_dtype, n);
    case Dtype::kF64: return ConvertFrom<double>(from, to, to_dtype, n);
    case Dtype::kC128: return ConvertFrom<std::complex<double>>(from, to, to_dtype, n);
    default: CHECK_MSG(false, "no conversion from {}", Name(from_dtype));
  }
}

}  // namespace bamba
