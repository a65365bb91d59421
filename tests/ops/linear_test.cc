#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/matrix.h"
#include "tests/support/simd_levels.h"
#include "tests/support/tested.h"

namespace bamba {
namespace {

struct Arithmetic {
  Dtype weight;
  bool precise;
};

class LinearTest : public testing::TestWithParam<Arithmetic> {
 protected:
  Matrix Weight(int64_t out, int64_t in, uint64_t seed = 7) { return Matrix(GetParam().weight, out, in, seed); }
  Tensor Bias(const Matrix& row) { return row.tensor().At(0); }

  // y = Linear(x, w) in f32, at the current SIMD level.
  Matrix Linear(const Tensor& x, const LinearWeight& w, int threads = 1, int64_t gap = 0) {
    Device cpu(TestedTable(), Dtype::kF32, threads, size_t{1} << 24);
    cpu.ctx.precise = GetParam().precise;
    Matrix y(Dtype::kF32, x.rows(), w.weight.rows(), 99, gap);
    ops::Linear(cpu.ctx, x, w, y);
    return y;
  }

  // Whether x is rounded to bf16 first.
  bool Rounds() const { return !TestsGpu() && !GetParam().precise && GetParam().weight == Dtype::kBf16 && cpu::CurrentSimd() >= cpu::SimdLevel::kAvx512Bf16; }

  static void RoundToBf16(const Tensor& x) {
    for (int64_t t = 0; t < x.rows(); t++)
      for (int64_t k = 0; k < x.cols(); k++) x.Row<float>(t)[k] = static_cast<float>(Bf16(x.Row<float>(t)[k]));
  }

  std::vector<double> Exact(const Tensor& x, const LinearWeight& w) {
    Device ref(ref::kTable, Dtype::kF64, 1, 0);
    std::vector<double> xs = Doubles(x), ys(static_cast<size_t>(x.rows() * w.weight.rows()));
    ops::Linear(ref.ctx, Tensor(xs.data(), Dtype::kF64, {x.rows(), x.cols()}), w, Tensor(ys.data(), Dtype::kF64, {x.rows(), w.weight.rows()}));
    return ys;
  }

  void ExpectWithinBound(int64_t rows, int64_t in, int64_t out) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << in << " -> " << out);
    Matrix x(Dtype::kF32, rows, in, 1, 5), weight = Weight(out, in), bias(GetParam().weight, 1, out, 3);
    const LinearWeight w{weight, Bias(bias)};
    // Where x is rounded, exactly that is computed with the rounded x: rounding then needs no part of the bound.
    Matrix used(Dtype::kF32, rows, in, 1, 5);
    if (Rounds()) RoundToBf16(used);
    const std::vector<double> exact = Exact(used, w), xs = Doubles(used), ws = Doubles(weight), bs = Doubles(bias);
    Matrix y = Linear(x, w, 2, 3);
    for (int64_t t = 0; t < rows; t++) {
      for (int64_t n = 0; n < out; n++) {  // the bias is one more term, times 1
        const double bound = DotBound(Norm(&xs[t * in], in, 1, 1), Norm(&ws[n * in], in, 1, bs[n]), static_cast<double>(in + 1));
        ASSERT_NEAR(y.tensor().Row<float>(t)[n], exact[t * out + n], bound) << "row " << t << ", output " << n;
      }
    }
    const Matrix untouched(Dtype::kF32, rows, out, 99, 3);
    for (int64_t t = 0; t + 1 < rows; t++) ASSERT_EQ(0, std::memcmp(y.tensor().Row<float>(t) + out, untouched.tensor().Row<float>(t) + out, 3 * sizeof(float)));
  }
};

TEST_P(LinearTest, IsWithinTheBoundOfTheExactProduct) {
  AtEverySimdLevel([&] {
    for (int64_t in = 1; in <= 70; in++)
      for (int64_t rows : {1, 2, 3, 7, 17, 49}) ExpectWithinBound(rows, in, 1 + in * 5 % 13);
    for (int64_t out = 1; out <= 70; out++)
      for (int64_t rows : {1, 4, 5, 6, 23}) ExpectWithinBound(rows, 1 + out * 11 % 37, out);
    for (int64_t in : {511, 512, 513, 1030, 4096})
      for (int64_t rows : {1, 16, 50}) ExpectWithinBound(rows, in, 35);
    for (int64_t in : {515, 1100}) ExpectWithinBound(270, in, 150);
    ExpectWithinBound(50, 515, 1045);
  });
}

// Lanes and tiles must not cost accuracy: a plain loop in the same precision is the measure, both against double and the unrounded x.
TEST_P(LinearTest, ErrsNoMoreThanTwiceThePlainLoop) {
  AtEverySimdLevel([&] {
    for (int64_t in : {63, 256, 4096}) {
      const int64_t rows = 20, out = 24;
      Matrix x(Dtype::kF32, rows, in, 4), used(Dtype::kF32, rows, in, 4), weight = Weight(out, in);
      if (Rounds()) RoundToBf16(used);
      const std::vector<double> exact = Exact(x, {weight, {}}), ws = Doubles(weight);
      const Matrix y = Linear(x, {weight, {}});
      double plain_error = 0, error = 0;
      for (int64_t t = 0; t < rows; t++) {
        for (int64_t n = 0; n < out; n++) {
          float plain = 0;
          for (int64_t k = 0; k < in; k++) plain += used.tensor().Row<float>(t)[k] * static_cast<float>(ws[n * in + k]);
          plain_error += std::pow(plain - exact[t * out + n], 2);
          error += std::pow(y.tensor().Row<float>(t)[n] - exact[t * out + n], 2);
        }
      }
      EXPECT_LE(std::sqrt(error), 2 * std::sqrt(plain_error)) << in;
    }
  });
}

TEST_P(LinearTest, RowsDoNotSeeTheirNeighbours) {
  AtEverySimdLevel([&] {
    for (const auto& [in, out] : {std::pair{1, 43}, {37, 43}, {256, 43}, {515, 43}, {1100, 43}, {515, 1045}}) {  // the last by other tiles at AVX2
      Matrix x(Dtype::kF32, 300, in, 5), weight = Weight(out, in), bias(GetParam().weight, 1, out, 6);
      const LinearWeight w{weight, Bias(bias)};
      const Matrix all = Linear(x, w);
      for (int64_t t = 0; t < 300; t += 7) {
        const Matrix alone = Linear(x.tensor().Rows(t, 1), w);
        ASSERT_TRUE(SameBits(alone, all.tensor().Rows(t, 1))) << "row " << t << " of 300, " << in << " inputs";
      }
      for (int64_t rows : {2, 3, 4, 5, 6, 7, 11, 15, 16, 17, 49, 64}) {
        const Matrix some = Linear(x.tensor().Rows(0, rows), w);
        ASSERT_TRUE(SameBits(some, all.tensor().Rows(0, rows))) << rows << " rows, " << in << " inputs";
      }
    }
  });
}

TEST_P(LinearTest, OutputsDoNotSeeTheirNeighbours) {
  AtEverySimdLevel([&] {
    Matrix x(Dtype::kF32, 19, 530, 8), weight = Weight(70, 530);
    for (int64_t rows : {1, 19}) {
      const Matrix all = Linear(x.tensor().Rows(0, rows), {weight, {}});
      for (int64_t n = 0; n < 60; n += 3) {
        const Matrix some = Linear(x.tensor().Rows(0, rows), {weight.tensor().Rows(n, 1 + n % 10), {}});
        ASSERT_TRUE(SameBits(some, all.tensor().Columns({n, 1 + n % 10}))) << "outputs from " << n;
      }
    }
  });
}

// Several matrices in one call, of one dtype or not, neighbours in memory or not.
TEST_P(LinearTest, SeveralProductsAreTheSameBitsAsEachAlone) {
  AtEverySimdLevel([&] {
    for (int64_t rows : {0, 1, 2, 7, 40}) {
      for (int64_t in : {1, 37, 530}) {
        Matrix x(Dtype::kF32, rows, in, 5), both = Weight(64, in), bias(GetParam().weight, 1, 13, 6), other(Dtype::kF32, 13, in, 7);
        const Tensor first = both.tensor().Rows(0, 23), second = both.tensor().Rows(23, 41);
        Device device(TestedTable(), Dtype::kF32, 3, size_t{1} << 24);
        device.ctx.precise = GetParam().precise;
        for (const auto& w : {std::vector<LinearWeight>{{first, {}}, {second, {}}}, {{second, {}}, {other, Bias(bias)}, {first, {}}}}) {
          int64_t out = 0;
          for (const LinearWeight& one : w) out += one.weight.rows();
          Matrix y(Dtype::kF32, rows, out, 2, 3);
          w.size() == 2 ? ops::Linears(device.ctx, x, {w[0], w[1]}, y) : ops::Linears(device.ctx, x, {w[0], w[1], w[2]}, y);
          int64_t column = 0;
          for (const LinearWeight& one : w) {
            const Matrix alone = Linear(x, one);
            ASSERT_TRUE(SameBits(alone, y.tensor().Columns({column, one.weight.rows()}))) << rows << " rows, " << in << " inputs, output " << column;
            column += one.weight.rows();
          }
        }
      }
    }
  });
}

TEST_P(LinearTest, NotANumberStaysInItsRow) {
  AtEverySimdLevel([&] {
    for (int64_t rows : {2, 5, 40}) {
      Matrix x(Dtype::kF32, rows, 21, 9), weight = Weight(11, 21);
      const Matrix clean = Linear(x, {weight, {}});
      std::fill_n(x.tensor().Row<float>(1), 21, std::numeric_limits<float>::quiet_NaN());
      const Matrix y = Linear(x, {weight, {}});
      EXPECT_TRUE(SameBits(y.tensor().Rows(0, 1), clean.tensor().Rows(0, 1)));
      EXPECT_TRUE(SameBits(y.tensor().Rows(2, rows - 2), clean.tensor().Rows(2, rows - 2)));
      for (int64_t n = 0; n < 11; n++) EXPECT_TRUE(std::isnan(y.tensor().Row<float>(1)[n]));
    }
  });
}

TEST_P(LinearTest, ThreadsDoNotChangeABit) {
  AtEverySimdLevel([&] {
    Matrix x(Dtype::kF32, 130, 600, 10), weight = Weight(300, 600);
    for (int64_t rows : {1, 5, 130}) {
      const Matrix one = Linear(x.tensor().Rows(0, rows), {weight, {}});
      for (int threads : {2, 3})
        EXPECT_EQ(one.bytes(), Linear(x.tensor().Rows(0, rows), {weight, {}}, threads).bytes()) << rows << " rows, " << threads << " threads";
    }
  });
}

TEST_P(LinearTest, NothingComesOfNothing) {
  AtEverySimdLevel([&] {
    Matrix no_rows(Dtype::kF32, 0, 8, 1), no_inputs(Dtype::kF32, 20, 0, 1), weight = Weight(5, 8), empty = Weight(5, 0), bias(GetParam().weight, 1, 5, 2);
    EXPECT_EQ(Linear(no_rows, {weight, {}}).tensor().rows(), 0);
    const Matrix y = Linear(no_inputs, {empty, Bias(bias)});
    const std::vector<double> bs = Doubles(bias);
    for (int64_t t = 0; t < 20; t++)
      for (int64_t n = 0; n < 5; n++) EXPECT_EQ(y.tensor().Row<float>(t)[n], bs[n]);
  });
}

INSTANTIATE_TEST_SUITE_P(Weights, LinearTest,
                         testing::Values(Arithmetic{Dtype::kF32, true}, Arithmetic{Dtype::kBf16, true}, Arithmetic{Dtype::kF16, true},
                                         Arithmetic{Dtype::kF32, false}, Arithmetic{Dtype::kBf16, false}, Arithmetic{Dtype::kF16, false}),
                         [](const auto& info) { return std::string(Name(info.param.weight)) + (info.param.precise ? "_precise" : "_fast"); });

// Weights of other formats, and every weight in a precise context, keep f32 activations: the same bits as the AVX-512 level, whatever is above it.
TEST(LinearLevels, OnlyFastProductsWithBf16WeightsRoundActivations) {
  if (TestsGpu()) GTEST_SKIP() << "the levels are the CPU's";
  const auto levels = cpu::SimdLevels();
  const Matrix x(Dtype::kF32, 40, 300, 1);
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    const Matrix weight(dtype, 30, 300, 2);
    for (bool precise : {true, false}) {
      const auto product = [&](cpu::SimdLevel level) {
        cpu::SetSimd(level);
        Device cpu(TestedTable(), Dtype::kF32, 2, size_t{1} << 20);
        cpu.ctx.precise = precise;
        Matrix y(Dtype::kF32, 40, 30, 3);
        ops::Linear(cpu.ctx, x, {weight, {}}, y);
        return y;
      };
      for (cpu::SimdLevel level : levels) {
        if (level <= cpu::SimdLevel::kAvx512) continue;
        EXPECT_EQ(product(level).bytes() == product(cpu::SimdLevel::kAvx512).bytes(), precise || dtype != Dtype::kBf16)
            << cpu::Name(level) << ", " << Name(dtype) << (precise ? ", precise" : ", fast");
      }
    }
  }
  cpu::SetSimd(levels.back());
}

}  // namespace
}  // namespace bamba
