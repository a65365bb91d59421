#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/matrix.h"
#include "tests/support/simd_levels.h"

namespace bamba {
namespace {

struct Gradients {
  Matrix dx, weight, bias;
  // What they hold before: gradients of parameters are added to it, dx is too or is overwritten.
  Gradients(int64_t rows, int64_t in, int64_t out, int64_t gap)
      : dx(Dtype::kF32, rows, in, 21, gap), weight(Dtype::kF32, out, in, 22), bias(Dtype::kF32, 1, out, 23) {}
};

class LinearBackwardTest : public testing::TestWithParam<Dtype> {
 protected:
  Gradients Run(const Tensor& x, const Tensor& weight, const Tensor& dy, Into into, int threads = 1, int64_t gap = 0) {
    Device cpu(cpu::kTable, Dtype::kF32, threads, 0);
    Gradients g(x.rows(), x.cols(), dy.cols(), gap);
    Matrix bias(GetParam(), 1, dy.cols(), 3);
    ops::LinearBackward(cpu.ctx, x, {weight, bias.tensor().At(0)}, dy, into, g.dx, {g.weight, g.bias.tensor().At(0)});
    return g;
  }

  void ExpectWithinBound(int64_t rows, int64_t in, int64_t out, Into into) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << in << " -> " << out << (into == Into::kAdd ? ", added" : ""));
    Matrix x(Dtype::kF32, rows, in, 1, 5), weight(GetParam(), out, in, 2), bias(GetParam(), 1, out, 3), dy(Dtype::kF32, rows, out, 4, 2);
    const Gradients before(rows, in, out, 3), after = Run(x, weight, dy, into, 2, 3);

    std::vector<double> xs = Doubles(x), ws = Doubles(weight), dys = Doubles(dy), dxs = Doubles(before.dx), dws = Doubles(before.weight),
                        dbs = Doubles(before.bias);
    const std::vector<double> dxs_before = dxs, dws_before = dws, dbs_before = dbs;
    const auto f64 = [](std::vector<double>& v, int64_t r, int64_t c) {
      v.reserve(1);  // an empty vector has no address
      return Tensor(v.data(), Dtype::kF64, {r, c});
    };
    Device ref(ref::kTable, Dtype::kF64, 1, 0);
    ops::LinearBackward(ref.ctx, f64(xs, rows, in), {weight, bias.tensor().At(0)}, f64(dys, rows, out), into, f64(dxs, rows, in),
                        {f64(dws, out, in), f64(dbs, 1, out).At(0)});

    // What was there before is one more term of each sum, times 1.
    for (int64_t t = 0; t < rows; t++) {
      for (int64_t k = 0; k < in; k++) {
        const double old = into == Into::kAdd ? dxs_before[t * in + k] : 0;
        ASSERT_NEAR(after.dx.tensor().Row<float>(t)[k], dxs[t * in + k], DotBound(Norm(&dys[t * out], out, 1, 1), Norm(&ws[k], out, in, old), out + 1.0));
      }
    }
    for (int64_t n = 0; n < out; n++) {
      for (int64_t k = 0; k < in; k++) {
        const double bound = DotBound(Norm(dys.data() + n, rows, out, 1), Norm(xs.data() + k, rows, in, dws_before[n * in + k]), rows + 1.0);
        ASSERT_NEAR(after.weight.tensor().Row<float>(n)[k], dws[n * in + k], bound) << "weight " << n << ", " << k;
      }
      const double bound = DotBound(Norm(dys.data() + n, rows, out, dbs_before[n]), std::sqrt(rows + 1.0), rows + 1.0);
      ASSERT_NEAR(after.bias.tensor().Row<float>(0)[n], dbs[n], bound) << "bias " << n;
    }
    for (int64_t t = 0; t + 1 < rows; t++)
      ASSERT_EQ(0, std::memcmp(after.dx.tensor().Row<float>(t) + in, before.dx.tensor().Row<float>(t) + in, 3 * sizeof(float)));
  }
};

TEST_P(LinearBackwardTest, IsWithinTheBoundOfTheExactGradients) {
  AtEverySimdLevel([&] {
    for (int64_t in = 1; in <= 70; in += 3)
      for (int64_t rows : {1, 2, 3, 7, 17, 49}) ExpectWithinBound(rows, in, 1 + in * 5 % 13, in % 2 ? Into::kAdd : Into::kWrite);
    for (int64_t out = 1; out <= 20; out++)
      for (int64_t rows : {1, 4, 5, 6}) ExpectWithinBound(rows, 1 + out * 11 % 37, out, out % 2 ? Into::kAdd : Into::kWrite);
    ExpectWithinBound(300, 130, 257, Into::kWrite);
    ExpectWithinBound(257, 64, 600, Into::kAdd);
    ExpectWithinBound(0, 9, 5, Into::kAdd);
  });
}

TEST_P(LinearBackwardTest, ThreadsDoNotChangeABit) {
  AtEverySimdLevel([&] {
    Matrix x(Dtype::kF32, 300, 150, 5), weight(GetParam(), 270, 150, 6), dy(Dtype::kF32, 300, 270, 7);
    const Gradients one = Run(x, weight, dy, Into::kWrite);
    for (int threads : {2, 3}) {
      const Gradients more = Run(x, weight, dy, Into::kWrite, threads);
      EXPECT_EQ(one.dx.bytes(), more.dx.bytes()) << threads << " threads";
      EXPECT_EQ(one.weight.bytes(), more.weight.bytes()) << threads << " threads";
      EXPECT_EQ(one.bias.bytes(), more.bias.bytes()) << threads << " threads";
    }
  });
}

// The order is one chain per element: what a row's dx is does not depend on the batch, and rows given in two calls sum up as in one.
TEST_P(LinearBackwardTest, CallsSumUpAsOne) {
  AtEverySimdLevel([&] {
    Device cpu(cpu::kTable, Dtype::kF32, 1, 0);
    Matrix x(Dtype::kF32, 40, 33, 5), weight(GetParam(), 21, 33, 6), dy(Dtype::kF32, 40, 21, 7);
    const Gradients all = Run(x, weight, dy, Into::kWrite);
    for (int64_t split : {1, 13, 39}) {
      Gradients parts(40, 33, 21, 0);
      for (Range r : {Range{0, split}, Range{split, 40 - split}})
        ops::LinearBackward(cpu.ctx, x.tensor().Rows(r.begin, r.size), {weight, {}}, dy.tensor().Rows(r.begin, r.size), Into::kWrite,
                            parts.dx.tensor().Rows(r.begin, r.size), {parts.weight, {}});
      EXPECT_EQ(all.dx.bytes(), parts.dx.bytes()) << split;
      EXPECT_EQ(all.weight.bytes(), parts.weight.bytes()) << split;
    }
  });
}

TEST_P(LinearBackwardTest, AbsentGradientsAreNotComputed) {
  Device cpu(cpu::kTable, Dtype::kF32, 1, 0);
  Matrix x(Dtype::kF32, 4, 6, 5), weight(GetParam(), 5, 6, 6), dy(Dtype::kF32, 4, 5, 7);
  const Gradients all = Run(x, weight, dy, Into::kWrite);
  Gradients only_dx(4, 6, 5, 0), only_weight(4, 6, 5, 0);
  ops::LinearBackward(cpu.ctx, x, {weight, {}}, dy, Into::kWrite, only_dx.dx, {});
  ops::LinearBackward(cpu.ctx, x, {weight, {}}, dy, Into::kWrite, {}, {only_weight.weight, {}});
  EXPECT_EQ(only_dx.dx.bytes(), all.dx.bytes());
  EXPECT_EQ(only_weight.weight.bytes(), all.weight.bytes());
}

INSTANTIATE_TEST_SUITE_P(Weights, LinearBackwardTest, testing::Values(Dtype::kF32, Dtype::kBf16, Dtype::kF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace bamba
