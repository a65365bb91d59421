#pragma once

#include <cmath>
#include <complex>
#include <vector>

#include "ops/context.h"

// The number types of the reference device. Everything in ref/ is written once for both: double is the meaning of an op, and complex numbers differentiate it:
// f(x + ih v) = f(x) + ih f'(x)·v for an h so small that h² vanishes, with no subtraction and so exact to rounding (Squire and Trapp 1998). That needs analytic
// functions: squares are x·x, never |x|², and comparisons look at the real part.
namespace bamba::ref {

using Complex = std::complex<double>;

inline double Real(double x) { return x; }
inline double Real(Complex z) { return z.real(); }

inline double Log1p(double x) { return std::log1p(x); }
// For Re z ≥ 0: log|1 + z| without forming 1 + z, and the argument.
inline Complex Log1p(Complex z) {
  const double x = z.real(), y = z.imag();
  return {0.5 * std::log1p(x * (2 + x) + y * y), std::atan2(y, 1 + x)};
}

template <typename T>
T Softplus(T x) {
  return Real(x) > 0 ? x + Log1p(std::exp(-x)) : Log1p(std::exp(x));
}

template <typename T>
T Sigmoid(T x) {
  if (Real(x) >= 0) return 1.0 / (1.0 + std::exp(-x));
  const T e = std::exp(x);
  return e / (1.0 + e);
}

template <typename T>
T Silu(T x) {
  return x * Sigmoid(x);
}

inline double SiluDerivative(double x) {
  const double s = Sigmoid(x);
  return s * (1 + x * (1 - s));
}

// Calls body with a value of the number type of the Context's activations.
template <typename Body>
void WithNumbers(const Context& ctx, const Body& body) {
  CHECK_MSG(ctx.dtype == Dtype::kF64 || ctx.dtype == Dtype::kC128, "the reference device computes in f64 or c128, not in {}", Name(ctx.dtype));
  if (ctx.dtype == Dtype::kF64)
    body(double{});
  else
    body(Complex{});
}

// Backward passes are real: it is they that complex numbers judge.
inline void CheckReal(const Context& ctx) { CHECK_MSG(ctx.dtype == Dtype::kF64, "backward on the reference device in {}", Name(ctx.dtype)); }

// The numbers of a contiguous weight of any dtype, exactly; none where it is absent.
template <typename T>
std::vector<T> Values(const Tensor& weight) {
  if (!weight) return {};
  const auto n = static_cast<size_t>(weight.size());
  if (weight.dtype() == kDtypeOf<T>) return {weight.as<T>(), weight.as<T>() + n};
  CHECK_MSG(weight.dtype() != Dtype::kC128, "complex weights in a computation in f64");
  std::vector<double> real(n);
  Convert(weight.data(), weight.dtype(), real.data(), Dtype::kF64, n);
  return {real.begin(), real.end()};
}

}  // namespace bamba::ref
