// The reference device itself: its functions of numbers, its reading of weights, and how far its scan may be driven.
#include "ops/ref/number.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "ops/ops.h"
#include "tests/support/device.h"

namespace bamba {
namespace {

using ref::Complex;

constexpr double kEps64 = 0x1p-53;

// x and −x over all magnitudes that occur, and 0.
std::vector<double> Arguments() {
  std::vector<double> out = {0};
  for (double x = 1e-300; x < 1e300; x *= 3.7) out.push_back(x), out.push_back(-x);
  for (double x = 0.01; x < 1000; x *= 1.1) out.push_back(x), out.push_back(-x);
  return out;
}

// A few roundings apart.
void ExpectClose(double a, double b, double x) {
  EXPECT_LE(std::abs(a - b), 8 * kEps64 * std::abs(b) + std::numeric_limits<double>::denorm_min()) << a << " and " << b << " at " << x;
}

TEST(RefNumbers, SoftplusAndSigmoidInWiderArithmetic) {
  for (double x : Arguments()) {
    const long double e = std::exp(-std::abs(static_cast<long double>(x)));
    ExpectClose(ref::Softplus(x), static_cast<double>(std::max<long double>(x, 0) + std::log1p(e)), x);
    ExpectClose(ref::Sigmoid(x), static_cast<double>((x >= 0 ? 1 : e) / (1 + e)), x);
  }
}

// A step so small that f(x + ih) = f(x) + ih f'(x) to the last bit.
TEST(RefNumbers, ComplexStepsAreDerivatives) {
  const double h = 0x1p-100;
  for (double x : Arguments()) {
    const Complex z(x, h);
    const double s = ref::Sigmoid(x);
    ExpectClose(ref::Softplus(z).real(), ref::Softplus(x), x);
    ExpectClose(ref::Sigmoid(z).real(), s, x);
    if (std::abs(x) > 600) continue;  // there the derivative times h is no longer a normal number
    ExpectClose(ref::Softplus(z).imag() / h, s, x);
    ExpectClose(ref::Sigmoid(z).imag() / h, s * ref::Sigmoid(-x), x);
    if (x >= 0) ExpectClose(ref::Log1p(z).imag() / h, 1 / (1 + x), x);
    // x + …, of which the terms may cancel: relative to the larger one.
    EXPECT_LE(std::abs(ref::Silu(z).imag() / h - ref::SiluDerivative(x)), 16 * kEps64 * s * (1 + std::abs(x))) << x;
  }
}

TEST(RefNumbers, WeightsOfAnyDtypeAreReadExactly) {
  std::vector<float> floats;
  std::vector<Bf16> bf16s;
  std::vector<F16> f16s;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 100; i++) floats.push_back(normal(random)), bf16s.emplace_back(floats.back()), f16s.emplace_back(floats.back());
  const auto expect_exact = [](auto& numbers, Dtype dtype) {
    const Tensor tensor(numbers.data(), dtype, {static_cast<int64_t>(numbers.size())});
    const std::vector<double> real = ref::Values<double>(tensor);
    const std::vector<Complex> complex = ref::Values<Complex>(tensor);
    ASSERT_EQ(real.size(), numbers.size());
    for (size_t i = 0; i < numbers.size(); i++) {
      EXPECT_EQ(real[i], static_cast<double>(static_cast<float>(numbers[i])));
      EXPECT_EQ(complex[i], Complex(real[i]));
    }
  };
  expect_exact(floats, Dtype::kF32);
  expect_exact(bf16s, Dtype::kBf16);
  expect_exact(f16s, Dtype::kF16);
}

// Random shapes, documents and boundary states, with time steps from nothing to 10³⁰ and decays from slow to instant: finite everywhere, forward and backward.
TEST(RefSsd, ExtremesStayFinite) {
  std::mt19937_64 random(2);
  Device device(ref::kTable, Dtype::kF64, 1, size_t{1} << 30);
  Context& ctx = device.ctx;
  const auto between = [&](int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); };
  std::normal_distribution<double> normal;
  const auto fill = [&](const Tensor& t, auto value) {
    for (int64_t i = 0; i < t.size(); i++) t.as<double>()[i] = value();
    return t;
  };
  const double extremes[] = {-1e30, -1e4, -745, -40, 0, 40, 700, 1e4, 1e30};
  for (int trial = 0; trial < 1000; trial++) {
    Frame frame(ctx);
    const int64_t groups = between(1, 3), heads = groups * between(1, 3);
    SsdShape shape{heads, between(1, 4), between(1, 5), groups, 0, std::numeric_limits<double>::infinity()};
    if (between(0, 3) == 0) shape.dt_min = 0.001, shape.dt_max = 0.1;
    Batch batch;
    for (int64_t n = between(1, 4); n > 0; n--)
      batch.sequences.push_back({.row = batch.rows(), .rows = between(0, 1) ? 1 : between(0, 70)}),
          batch.tokens.resize(static_cast<size_t>(batch.rows() + batch.sequences.back().rows));
    const int64_t rows = batch.rows(), sequences = static_cast<int64_t>(batch.sequences.size());

    const auto any = [&] { return normal(random); };
    const auto extreme = [&] { return between(0, 1) ? normal(random) : extremes[between(0, 8)]; };
    const Tensor xbc = fill(ctx.Temp({rows, shape.conv_dim()}), any), dt = fill(ctx.Temp({rows, heads}), extreme),
                 dy = fill(ctx.Temp({rows, shape.inner()}), any);
    const Tensor dt_bias = fill(ctx.Temp({heads}), any), d = fill(ctx.Temp({heads}), any), a_log = fill(ctx.Temp({heads}), [&] { return 8 * normal(random); });
    const Tensor initial = fill(ctx.Temp({sequences, heads, shape.head_dim, shape.state}), any);
    const auto nan = [] { return std::numeric_limits<double>::quiet_NaN(); };
    const Tensor y = fill(ctx.Temp({rows, shape.inner()}), nan), dxbc = fill(ctx.Temp({rows, shape.conv_dim()}), nan), ddt = fill(ctx.Temp({rows, heads}), nan);
    const Tensor dinitial = fill(ctx.Temp({sequences, heads, shape.head_dim, shape.state}), nan);
    const auto zero = [] { return 0.0; };
    const Tensor ddt_bias = fill(ctx.Temp({heads}), zero), da_log = fill(ctx.Temp({heads}), zero), dd = fill(ctx.Temp({heads}), zero);
    ops::SsdScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, {}, y);
    ops::SsdScanBackward(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, initial, dy, dxbc, ddt, ddt_bias, da_log, dd, dinitial);
    for (const Tensor* t : {&y, &dxbc, &ddt, &ddt_bias, &da_log, &dd, &dinitial})
      for (int64_t i = 0; i < t->size(); i++)
        ASSERT_TRUE(std::isfinite(t->as<double>()[i])) << "trial " << trial << ", element " << i << " of " << t->ShapeString();
  }
}

}  // namespace
}  // namespace bamba
