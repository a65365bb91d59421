// The GPU's ops without products: embedding, SwiGLU, rows to keep, scaling, cross entropy, rotary embedding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/gpu.h"
#include "tests/support/numbers.h"

namespace bamba {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A matrix on the GPU that is columns of a wider one, `gap` more.
struct There {
  Tensor wide, view;
  There(Gpu& gpu, const Numbers& host, int64_t gap) {
    const Tensor t = host;
    const Numbers padded(t.dtype(), {t.rows(), t.cols() + gap}, [] { return kNan; });
    for (int64_t i = 0; i < t.rows(); i++) std::memcpy(padded.tensor().At(i).data(), t.At(i).data(), t.At(i).bytes());
    wide = gpu.Upload(padded);
    view = wide.Columns({0, t.cols()});
  }
  // What lies beside the view must stay NaN.
  Numbers Fetch() const {
    Numbers all(wide.dtype(), {wide.rows(), wide.cols()});
    Gpu::Download(wide, all);
    const Numbers doubles = all.Double();
    Numbers out(Dtype::kF64, {view.rows(), view.cols()});
    for (int64_t i = 0; i < wide.rows(); i++)
      for (int64_t j = 0; j < wide.cols(); j++) {
        const double x = doubles.doubles()[i * wide.cols() + j];
        if (j < view.cols())
          out.doubles()[i * view.cols() + j] = x;
        else
          EXPECT_TRUE(std::isnan(x)) << "beside the matrix, row " << i;
      }
    return out;
  }
};

Numbers Poisoned(Dtype dtype, int64_t rows, int64_t cols) {
  return Numbers(dtype, {rows, cols}, [] { return kNan; });
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 1}, {3, 7}, {5, 64}, {1, 4096}, {33, 130}, {300, 256}, {2, 14336}};

TEST(CudaElementwiseTest, Embed) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(1);
  Gpu gpu(Dtype::kBf16);
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16})
    for (const auto& [rows, columns] : kShapes) {
      const Numbers table(dtype, {50, columns}, draws.Normal());
      Batch batch;
      for (int64_t i = 0; i < rows; i++) batch.tokens.push_back(static_cast<int32_t>(draws.Int(0, 49)));
      batch.sequences = {{.rows = rows}};
      const There x(gpu, Poisoned(Dtype::kF32, rows, columns), draws.Int(0, 1) * draws.Int(1, 9));
      ops::Begin(gpu.ctx, batch);
      ops::Embed(gpu.ctx, batch, gpu.Upload(table), 12.5, x.view);
      const Numbers got = x.Fetch(), weights = table.Double();
      for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
          ASSERT_EQ(got.doubles()[i * columns + j], static_cast<float>(12.5 * weights.doubles()[batch.tokens[static_cast<size_t>(i)] * columns + j]));
      gpu.FreeTemporaries();
    }
}

TEST(CudaElementwiseTest, SwiGlu) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(2);
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16})
    for (const auto& [rows, columns] : kShapes) {
      Gpu gpu(dtype, size_t{256} << 20);
      const Numbers both(dtype, {rows, 2 * columns},
                         [&, normal = draws.Normal(), wide = draws.Uniform(-120, 120)] { return draws.Int(0, 3) ? normal() : wide(); });
      const Numbers input = both.Double();
      const auto check = [&](const Numbers& got) {
        for (int64_t i = 0; i < rows; i++)
          for (int64_t j = 0; j < columns; j++) {
            const double g = input.doubles()[i * 2 * columns + j], u = input.doubles()[i * 2 * columns + columns + j], due = g / (1 + std::exp(-g)) * u;
            const double relative = dtype == Dtype::kF32 ? kSiluError + kEps32 : kEpsBf16;
            // What underflows is lost to within kTiny32 times its factors: e^−|g|, which g and u multiply; g's part, which u does; the result.
            const double underflow = kTiny32 * (std::abs(g * u) + std::abs(u) + 1);
            ASSERT_NEAR(got.doubles()[i * columns + j], due, relative * std::abs(due) + underflow) << g << ", " << u;
          }
      };
      const There y(gpu, Poisoned(dtype, rows, columns), draws.Int(0, 1) * draws.Int(1, 9));
      const Tensor there = gpu.Upload(both), gate = there.Columns({0, columns}), up = there.Columns({columns, columns});
      ops::SwiGlu(gpu.ctx, gate, up, y.view);
      check(y.Fetch());
      ops::SwiGlu(gpu.ctx, gate, up, gate);  // in place
      Numbers in_place(dtype, {rows, columns});
      Gpu::Download(gate, in_place);
      check(in_place.Double());
    }
}

TEST(CudaElementwiseTest, KeepRows) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(3);
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16})
    for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{1, 3}, {2, 8}, {700, 33}, {600, 1024}, {40, 64}}) {
      Gpu gpu(dtype, size_t{256} << 20);
      for (int kind = 0; kind < 4; kind++) {
        std::vector<int64_t> keep;
        for (int64_t i = 0; i < rows; i++)
          if (kind == 0 ? i == rows - 1 : kind == 1 ? i > 0 : kind == 2 ? draws.Int(0, 2) > 0 : i < rows / 2) keep.push_back(i);
        const Numbers x(dtype, {rows, columns}, draws.Normal());
        const There there(gpu, x, draws.Int(0, 1) * draws.Int(1, 9));
        ops::KeepRows(gpu.ctx, keep, there.view);
        const Numbers got = there.Fetch(), due = x.Double();
        for (size_t i = 0; i < keep.size(); i++)
          ASSERT_TRUE(std::equal(got.doubles() + static_cast<int64_t>(i) * columns, got.doubles() + static_cast<int64_t>(i + 1) * columns,
                                 due.doubles() + keep[i] * columns))
              << "row " << keep[i];
        gpu.FreeTemporaries();
      }
    }
}

TEST(CudaElementwiseTest, ScaleAndZero) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(4);
  Gpu gpu(Dtype::kF32);
  for (const auto& [rows, columns] : kShapes) {
    const Numbers x(Dtype::kF32, {rows, columns}, draws.Normal());
    const There there(gpu, x, draws.Int(0, 1) * draws.Int(1, 9));
    ops::Scale(gpu.ctx, there.view, 0.3);
    const Numbers got = there.Fetch();
    for (int64_t i = 0; i < rows * columns; i++) ASSERT_EQ(got.doubles()[i], x.floats()[i] * 0.3f);
    ops::Zero(gpu.ctx, there.view);
    const Numbers zeros = there.Fetch();
    for (int64_t i = 0; i < rows * columns; i++) ASSERT_EQ(zeros.doubles()[i], 0);
    gpu.FreeTemporaries();
  }
  const Numbers deep(Dtype::kF32, {3, 5, 7}, draws.Normal());
  const Tensor there = gpu.Upload(deep);
  ops::Zero(gpu.ctx, there);
  Gpu::Download(there, deep);
  for (int64_t i = 0; i < 105; i++) ASSERT_EQ(deep.floats()[i], 0);
}

TEST(CudaElementwiseTest, CrossEntropy) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(5);
  Gpu gpu(Dtype::kBf16);
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{1, 1}, {7, 5}, {40, 1000}, {9, 128256}}) {
    const Numbers logits(Dtype::kF32, {rows, vocab}, draws.Normal(8)), nll(Dtype::kF32, {rows}, [] { return kNan; });
    if (rows > 6) std::fill_n(logits.floats() + 3 * vocab, vocab, -5000.f), logits.floats()[3 * vocab + 1] = 5000;
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < rows; i++) labels.push_back(i == 5 ? ops::kIgnoredLabel : static_cast<int32_t>(draws.Int(0, vocab - 1)));
    const There there(gpu, logits, draws.Int(0, 5));
    const Tensor out = gpu.Upload(nll);
    ops::CrossEntropy(gpu.ctx, there.view, labels, out);
    Gpu::Download(out, nll);
    for (int64_t i = 0; i < rows; i++) {
      const float* x = logits.floats() + i * vocab;
      const double top = *std::max_element(x, x + vocab), low = *std::min_element(x, x + vocab);
      double sum = 0;
      for (int64_t j = 0; j < vocab; j++) sum += std::exp(x[j] - top);
      const double due = labels[static_cast<size_t>(i)] < 0 ? 0 : std::log(sum) + top - x[labels[static_cast<size_t>(i)]];
      EXPECT_NEAR(nll.floats()[i], due, LogSumExpError(std::min(top - low, 104.0)) + kEps32 * std::abs(due)) << "row " << i << " of " << vocab;
    }
    gpu.FreeTemporaries();
  }
}

TEST(CudaElementwiseTest, Rope) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(6);
  const std::vector<RopeShape> shapes = {{.heads = 32, .head_dim = 128, .dims = 64, .theta = 10000}, {.heads = 8, .head_dim = 128, .dims = 128, .theta = 5e5},
                                         {.heads = 3, .head_dim = 7, .dims = 6, .theta = 100},       {.heads = 1, .head_dim = 2, .dims = 2, .theta = 10},
                                         {.heads = 2, .head_dim = 600, .dims = 520, .theta = 1e4},   {.heads = 5, .head_dim = 16, .dims = 0, .theta = 1e4}};
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16})
    for (const RopeShape& shape : shapes) {
      Gpu gpu(dtype, size_t{256} << 20);
      // Single tokens, prompts, none, at positions up to a million.
      Batch batch;
      int64_t rows = 0;
      for (const auto& [count, position] : {std::pair<int64_t, int64_t>{1, 0}, {70, 0}, {0, 5}, {1, 999'999}, {13, 123'456}, {1, 17}}) {
        batch.sequences.push_back({.row = rows, .rows = count, .position = position, .slot = 0});
        rows += count;
      }
      batch.tokens.assign(static_cast<size_t>(rows), 0);
      const int64_t columns = shape.heads * shape.head_dim;
      const Numbers x(dtype, {rows, columns}, draws.Normal()), due = x.Double();
      const There there(gpu, x, draws.Int(0, 1) * 8);
      ops::Begin(gpu.ctx, batch);
      ops::Rope(gpu.ctx, there.view, shape, batch);
      Device ref(ref::kTable, Dtype::kF64, 1, size_t{1} << 20);
      ops::Rope(ref.ctx, due, shape, batch);
      const Numbers got = there.Fetch(), input = x.Double();
      for (int64_t i = 0; i < rows * columns; i++) {
        const int64_t j = i % columns % shape.head_dim, half = shape.dims / 2;
        if (j >= shape.dims) {
          ASSERT_EQ(got.doubles()[i], input.doubles()[i]);
          continue;
        }
        const double u = std::abs(input.doubles()[i]), v = std::abs(input.doubles()[j < half ? i + half : i - half]);
        ASSERT_NEAR(got.doubles()[i], due.doubles()[i], RotationBound(u, v) + (dtype == Dtype::kF32 ? 0 : kEpsBf16 * std::abs(due.doubles()[i]))) << i;
      }
    }
}

}  // namespace
}  // namespace bamba
