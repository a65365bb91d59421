#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/gpu.h"
#include "tests/support/matrix.h"

namespace bamba {
namespace {

// A matrix on the GPU, its rows `gap` numbers apart, and NaN in all of it.
class Poisoned {
 public:
  Poisoned(Gpu& gpu, Dtype dtype, int64_t rows, int64_t cols, int64_t gap) : host_(dtype, rows, cols + gap, 1), cols_(cols) {
    std::vector<double> nan(static_cast<size_t>(rows * (cols + gap)), std::numeric_limits<double>::quiet_NaN());
    Convert(nan.data(), Dtype::kF64, host_.tensor().data(), dtype, nan.size());
    there_ = gpu.Upload(host_);
  }
  Tensor tensor() const { return there_.Columns({0, cols_}); }
  // The results; nothing beside them may have changed.
  Tensor Result() {
    Gpu::Download(there_, host_);
    const std::vector<double> all = Doubles(host_);
    const int64_t wide = host_.tensor().cols();
    for (size_t i = 0; i < all.size(); i++) EXPECT_TRUE(static_cast<int64_t>(i) % wide < cols_ || std::isnan(all[i])) << "written past the row's end";
    return host_.tensor().Columns({0, cols_});
  }

 private:
  Matrix host_;
  int64_t cols_;
  Tensor there_;
};

// x with rows `gap` apart on the GPU.
Tensor UploadRows(Gpu& gpu, const Tensor& x, int64_t gap) {
  Matrix wide(x.dtype(), x.rows(), x.cols() + gap, 1234);
  const Tensor columns = wide.tensor().Columns({0, x.cols()});
  for (int64_t i = 0; i < x.rows(); i++) std::memcpy(columns.At(i).data(), x.At(i).data(), x.At(i).bytes());
  return gpu.Upload(wide).Columns({0, x.cols()});
}

bool SameBytes(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.rows(); i++)
    if (std::memcmp(a.At(i).data(), b.At(i).data(), a.At(i).bytes()) != 0) return false;
  return a.rows() == b.rows();
}

std::vector<double> Exact(const Tensor& x, const LinearWeight& w) {
  Device ref(ref::kTable, Dtype::kF64, 1, 0);
  std::vector<double> xs = Doubles(x), ys(static_cast<size_t>(x.rows() * w.weight.rows()));
  ops::Linear(ref.ctx, Tensor(xs.data(), Dtype::kF64, {x.rows(), x.cols()}), w, Tensor(ys.data(), Dtype::kF64, {x.rows(), w.weight.rows()}));
  return ys;
}

struct Shape {
  int64_t rows, in, out, gap;
};

// Multiprocessors of an H100 or H200, which divide the outputs of some products among them. Elsewhere these shapes meet other cases.
constexpr int64_t kSms = 132;

void ExpectF32WithinBound(Dtype weight_dtype, const Shape& s) {
  SCOPED_TRACE(testing::Message() << Name(weight_dtype) << ", " << s.rows << " rows, " << s.in << " -> " << s.out << ", gap " << s.gap);
  Gpu gpu(Dtype::kF32);
  Matrix x(Dtype::kF32, s.rows, s.in, 1), weight(weight_dtype, s.out, s.in, 7), bias(Dtype::kF32, 1, s.out, 3);
  for (const bool biased : {false, true}) {
    const Tensor b = biased ? bias.tensor().At(0) : Tensor();
    Poisoned y(gpu, Dtype::kF32, s.rows, s.out, s.gap);
    ops::Linear(gpu.ctx, UploadRows(gpu, x, s.gap), {gpu.Upload(weight), gpu.Upload(b)}, y.tensor());
    const std::vector<double> got = Doubles(y.Result()), exact = Exact(x, {weight, b}), xs = Doubles(x), ws = Doubles(weight), bs = Doubles(bias);
    for (int64_t t = 0; t < s.rows; t++)
      for (int64_t n = 0; n < s.out; n++) {
        const auto i = static_cast<size_t>(t * s.out + n);
        const double norm_x = Norm(xs.data() + t * s.in, s.in, 1, 1), norm_w = Norm(ws.data() + n * s.in, s.in, 1, bs[static_cast<size_t>(n)]);
        ASSERT_NEAR(got[i], exact[i], DotBound(norm_x, norm_w, static_cast<double>(s.in + 1))) << "row " << t << ", output " << n << ", biased " << biased;
      }
  }
}

TEST(CudaLinear, F32IsWithinTheBoundOfTheExactProduct) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    for (int64_t in : {1, 3, 8, 31, 32, 33, 64, 100}) ExpectF32WithinBound(dtype, {in % 7 + 1, in, 1 + in * 5 % 37, in % 2 * 3});
    for (int64_t rows : {1, 2, 4, 5, 8, 9, 63, 64, 65, 129}) ExpectF32WithinBound(dtype, {rows, 264, 70, 4});
    for (int64_t in : {1024, 1025, 2080, 4096}) ExpectF32WithinBound(dtype, {3, in, 33, 0});
    ExpectF32WithinBound(dtype, {17, 1100, 131, 1});
  }
  ExpectF32WithinBound(Dtype::kF32, {1540, 36, 1412, 0});  // tiles of 128
}

// The first row alone, the first few and all of them: each path has the same bits for a row.
void ExpectSameBits(Dtype activations, Dtype weights, Dtype results, const Shape& s) {
  SCOPED_TRACE(testing::Message() << Name(activations) << " x " << Name(weights) << ", " << s.rows << " rows, " << s.in << " -> " << s.out);
  Gpu gpu(activations);
  gpu.ctx.invariant = true;
  Matrix x(activations, s.rows, s.in, 1), weight(weights, s.out, s.in, 7), bias(Dtype::kF32, 1, s.out, 3);
  const Tensor there = UploadRows(gpu, x, s.gap);
  const LinearWeight w{gpu.Upload(weight), gpu.Upload(bias.tensor().At(0))};
  Poisoned all(gpu, results, s.rows, s.out, 0);
  ops::Linear(gpu.ctx, there, w, all.tensor());
  const Tensor expected = all.Result();
  for (const double v : Doubles(expected)) ASSERT_TRUE(std::isfinite(v));
  for (int64_t count : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 130}) {
    for (int64_t first : {int64_t{0}, s.rows - count}) {
      if (first < 0 || count > s.rows || (Gpu::Short() && (first > 0 || count % 7 > 2))) continue;
      Poisoned some(gpu, results, count, s.out, 8);
      ops::Linear(gpu.ctx, there.Rows(first, count), w, some.tensor());
      EXPECT_TRUE(SameBytes(some.Result(), expected.Rows(first, count))) << count << " rows from " << first;
    }
  }
}

TEST(CudaLinear, ARowHasTheSameBitsAloneAndAmongMany) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const Dtype weights : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    ExpectSameBits(Dtype::kF32, weights, Dtype::kF32, {200, 1100, 70, 0});
    ExpectSameBits(Dtype::kF32, weights, Dtype::kF32, {200, 77, 131, 1});
    ExpectSameBits(Dtype::kBf16, weights, Dtype::kBf16, {200, 77, 131, 1});
    ExpectSameBits(Dtype::kBf16, weights, Dtype::kF32, {200, 1096, 70, 8});
  }
  for (int64_t in : {8, 32, 40, 64, 248, 256, 264, 512, 2048, 2056, 4096})
    ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {200, in, 129, in % 32 == 0 ? 8 : 0});
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kF32, {1700, 512, 1300, 0});   // tiles of 128
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kF32, {140, 14336, 4100, 0});  // more inputs than shared memory takes, more tiles than blocks
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {200, 2312, 4096, 0});  // two halves of the inputs, where two blocks share a tile
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {140, 520, 9000, 8});   // more outputs than a tile of each multiprocessor
  // Pairs of blocks for hundreds of rows, the second one with part of its rows or none; one and more rounds; two halves of the inputs.
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {500, 328, 64 * kSms, 8});
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {1284, 72, 2810, 6});
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {2570, 2312, 2810, 6});
  ExpectSameBits(Dtype::kBf16, Dtype::kBf16, Dtype::kBf16, {130, 128, 97 * kSms + 4, 0});  // where the default mode has a kernel for 97 to 128 rows
}

// rms error against double at most twice that of f32 sums in plain order, rounded to bf16.
void ExpectBf16(bool invariant, Dtype weights, Dtype results, const Shape& s, bool biased) {
  SCOPED_TRACE(testing::Message() << Name(weights) << ", " << s.rows << " rows, " << s.in << " -> " << s.out << ", gap " << s.gap << ", invariant "
                                  << invariant);
  Gpu gpu(Dtype::kBf16);
  gpu.ctx.invariant = invariant;
  Matrix x(Dtype::kBf16, s.rows, s.in, 1), weight(weights, s.out, s.in, 7), bias(Dtype::kF32, 1, s.out, 3);
  const Tensor b = biased ? bias.tensor().At(0) : Tensor();
  Poisoned y(gpu, results, s.rows, s.out, s.gap);
  ops::Linear(gpu.ctx, UploadRows(gpu, x, s.gap), {gpu.Upload(weight), gpu.Upload(b)}, y.tensor());
  const std::vector<double> got = Doubles(y.Result()), exact = Exact(x, {weight, b}), xs = Doubles(x), ws = Doubles(weight), bs = Doubles(bias);
  double error = 0, naive_error = 0;
  for (int64_t t = 0; t < s.rows; t++)
    for (int64_t n = 0; n < s.out; n++) {
      const auto i = static_cast<size_t>(t * s.out + n);
      float sum = 0;
      for (int64_t k = 0; k < s.in; k++) sum += static_cast<float>(xs.data()[t * s.in + k]) * static_cast<float>(ws.data()[n * s.in + k]);
      if (biased) sum += static_cast<float>(bs[static_cast<size_t>(n)]);
      const double naive = results == Dtype::kF32 ? sum : static_cast<float>(Bf16(sum));
      ASSERT_TRUE(std::isfinite(got[i])) << "row " << t << ", output " << n;
      error += (got[i] - exact[i]) * (got[i] - exact[i]), naive_error += (naive - exact[i]) * (naive - exact[i]);
    }
  EXPECT_LE(std::sqrt(error), 2 * std::sqrt(naive_error) + 1e-6 * std::sqrt(static_cast<double>(s.in * s.rows * s.out)));
}

TEST(CudaLinear, Bf16IsAsGoodAsThePlainSum) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const bool invariant : {false, true}) {
    for (int64_t rows : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 200})
      for (const Dtype results : {Dtype::kBf16, Dtype::kF32}) ExpectBf16(invariant, Dtype::kBf16, results, {rows, 520, 200, 8}, rows % 2 == 0);
    for (int64_t in : {8, 24, 256, 1000, 4096, 8192}) ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {3, in, 40, 0}, false);
    for (const Dtype weights : {Dtype::kBf16, Dtype::kF16, Dtype::kF32})
      for (int64_t rows : {1, 5, 70}) ExpectBf16(invariant, weights, Dtype::kBf16, {rows, 77, 19, 1}, true);
    ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {1, 4096, 6144, 0}, false);
    ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {8, 14336, 130, 0}, false);
    ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {40, 2048, 130, 0}, false);
    // Many outputs of 97 to 128 rows: one and more rounds of blocks, blocks with fewer outputs at the end, more inputs than shared memory takes.
    for (int64_t out : {97 * kSms + 4, 128 * kSms, 224 * kSms - 8, 240 * kSms, 256 * kSms + 16})
      if (!Gpu::Short() || out == 97 * kSms + 4) ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {97, 64, out, 8}, false);
    // Hundreds of rows.
    ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {1284, 72, 2810, 6}, false);
    if (!Gpu::Short()) ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {1000, 136, 64 * kSms, 0}, false);
    for (int64_t out : {int64_t{13000}, 224 * kSms - 8})
      if (!Gpu::Short() || out > 13000) ExpectBf16(invariant, Dtype::kBf16, Dtype::kBf16, {100, 512, out, 0}, false);
  }
}

// gate and up may be rounded to bf16 before their product is, or not.
void ExpectSwiGluLinears(const Shape& s, bool invariant, bool adjacent) {
  SCOPED_TRACE(testing::Message() << s.rows << " rows, " << s.in << " -> " << s.out << ", gap " << s.gap << ", invariant " << invariant << ", adjacent "
                                  << adjacent);
  Gpu gpu(Dtype::kBf16);
  gpu.ctx.invariant = invariant;
  const int64_t between = adjacent ? 0 : 8;
  Matrix x(Dtype::kBf16, s.rows, s.in, 1), weights(Dtype::kBf16, 2 * s.out + between, s.in, 7);
  const Tensor w = weights.tensor(), there = gpu.Upload(weights);
  Poisoned gate_up(gpu, Dtype::kBf16, s.rows, 2 * s.out, 0), y(gpu, Dtype::kBf16, s.rows, s.out, s.gap);
  ops::SwiGluLinears(gpu.ctx, UploadRows(gpu, x, s.gap), {there.Rows(0, s.out), {}}, {there.Rows(s.out + between, s.out), {}}, gate_up.tensor(), y.tensor());
  if (invariant) {
    Poisoned parts(gpu, Dtype::kBf16, s.rows, s.out, 0);
    ops::Linears(gpu.ctx, UploadRows(gpu, x, s.gap), {{there.Rows(0, s.out), {}}, {there.Rows(s.out + between, s.out), {}}}, gate_up.tensor());
    ops::SwiGlu(gpu.ctx, gate_up.tensor().Columns({0, s.out}), gate_up.tensor().Columns({s.out, s.out}), parts.tensor());
    EXPECT_TRUE(SameBytes(y.Result(), parts.Result()));
  }
  const std::vector<double> got = Doubles(y.Result()), gates = Exact(x, {w.Rows(0, s.out), {}}), ups = Exact(x, {w.Rows(s.out + between, s.out), {}});
  const std::vector<double> xs = Doubles(x), ws = Doubles(weights);
  const auto dot_bound = [&](int64_t row, int64_t output) {
    return DotBound(Norm(xs.data() + row * s.in, s.in, 1), Norm(ws.data() + output * s.in, s.in, 1), static_cast<double>(s.in));
  };
  for (int64_t t = 0; t < s.rows; t++)
    for (int64_t n = 0; n < s.out; n++) {
      const auto i = static_cast<size_t>(t * s.out + n);
      const double gate = gates[i], up = ups[i], silu = gate / (1 + std::exp(-gate)), due = silu * up;
      const double gate_error = dot_bound(t, n) + kEpsBf16 * std::abs(gate), up_error = dot_bound(t, s.out + between + n) + kEpsBf16 * std::abs(up);
      // SiLU's slope is at most 1.1; the result is rounded, too, and the error's own error is of second order.
      const double bound = 1.01 * (1.1 * gate_error * std::abs(up) + up_error * std::abs(silu) + kEpsBf16 * std::abs(due));
      ASSERT_NEAR(got[i], due, bound) << "row " << t << ", output " << n;
    }
}

TEST(CudaLinear, SwiGluOfTwoProducts) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const bool invariant : {false, true})
    for (int64_t rows : {1, 64, 100, 130}) ExpectSwiGluLinears({rows, 136, 40, 8}, invariant, rows > 1);
  // Many outputs of 97 to 128 rows go by one kernel: one and more rounds of its blocks, a last block with fewer outputs, all its numbers of rows, and what it
  // leaves to the others (inputs that aren't whole stages, rows that aren't aligned).
  ExpectSwiGluLinears({100, 64, 48 * kSms + 8, 8}, true, true);
  for (int64_t rows : {96, 97, 111, 112, 127, 128, 129})
    if (!Gpu::Short() || rows == 111) ExpectSwiGluLinears({rows, 64, 48 * kSms + 8, 8}, false, rows % 2 == 0);
  // Hundreds of rows go by pairs of blocks, the second one with part of its rows or none.
  ExpectSwiGluLinears({250, 64, 64 * kSms - 4, 4}, false, true);
  if (!Gpu::Short()) ExpectSwiGluLinears({2684, 72, 768, 0}, false, false), ExpectSwiGluLinears({1000, 200, 32 * kSms, 0}, false, true);
  for (int64_t out : {112 * kSms, 240 * kSms + 40}) ExpectSwiGluLinears({110, 448, out, 0}, false, true);
  if (Gpu::Short()) return;
  for (int64_t out : {64 * kSms, 64 * kSms + 8, 112 * kSms, 128 * kSms - 56, 128 * kSms + 8}) ExpectSwiGluLinears({110, 64, out, 0}, false, true);
  ExpectSwiGluLinears({100, 72, 6400, 8}, false, true);
  ExpectSwiGluLinears({100, 128, 6400, 3}, false, true);
  ExpectSwiGluLinears({100, 128, 6401, 8}, false, true);
}

// What a row beside it holds, and what lies past a row's end, never gets into a result.
TEST(CudaLinear, NaNStaysInItsRow) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const Dtype activations : {Dtype::kF32, Dtype::kBf16}) {
    Gpu gpu(activations);
    for (int64_t rows : {2, 9, 33, 130}) {
      Matrix x(activations, rows, 136, 1), weight(Dtype::kBf16, 100, 136, 7);
      std::vector<double> nan(136, std::numeric_limits<double>::quiet_NaN());
      Convert(nan.data(), Dtype::kF64, x.tensor().At(rows - 1).data(), activations, nan.size());
      Poisoned y(gpu, Dtype::kF32, rows, 100, 0), wide_x(gpu, activations, rows, 136, 8);
      for (int64_t i = 0; i < rows; i++) Gpu::Here()->Upload(wide_x.tensor().At(i).data(), x.tensor().At(i).data(), x.tensor().At(i).bytes());
      ops::Linear(gpu.ctx, wide_x.tensor(), {gpu.Upload(weight), {}}, y.tensor());
      const std::vector<double> got = Doubles(y.Result());
      for (size_t i = 0; i < got.size(); i++) ASSERT_EQ(std::isnan(got[i]), i / 100 == static_cast<size_t>(rows - 1)) << i << " of " << rows << " rows";
    }
  }
}

TEST(CudaLinear, SeveralAreTheSameAsOneByOne) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const Dtype activations : {Dtype::kF32, Dtype::kBf16}) {
    for (const bool adjacent : {false, true}) {
      for (int64_t rows : {0, 1, 5, 70}) {
        Gpu gpu(activations);
        gpu.ctx.invariant = true;
        const int64_t in = 64, outs[] = {48, 16, 40};
        Matrix x(activations, rows, in, 1), weights(Dtype::kBf16, 200, in, 2), biases(Dtype::kF32, 1, 200, 3);
        const Tensor w = gpu.Upload(weights), b = gpu.Upload(biases.tensor().At(0)), there = gpu.Upload(x);
        std::vector<LinearWeight> parts;
        Poisoned one_by_one(gpu, Dtype::kF32, rows, 104, 0), together(gpu, Dtype::kF32, rows, 104, 0);
        int64_t column = 0, at = 0;
        for (int64_t out : outs) {
          parts.push_back({w.Rows(at, out), Tensor(b.as<float>() + at, Dtype::kF32, {out})});
          ops::Linear(gpu.ctx, there, parts.back(), one_by_one.tensor().Columns({column, out}));
          column += out, at += out + (adjacent ? 0 : 8);
        }
        ops::Linears(gpu.ctx, there, {parts[0], parts[1], parts[2]}, together.tensor());
        EXPECT_TRUE(SameBytes(together.Result(), one_by_one.Result())) << rows << " rows, adjacent " << adjacent;
      }
    }
  }
}

}  // namespace
}  // namespace bamba
