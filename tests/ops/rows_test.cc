// Ops whose rows know nothing of each other (and rotation, which knows a row's position), against the reference in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/numbers.h"
#include "tests/support/simd_levels.h"
#include "tests/support/tested.h"

namespace bamba {
namespace {

constexpr Dtype kWeightTypes[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};
constexpr int64_t kWidths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257, 1030};
constexpr int64_t kRowCounts[] = {0, 1, 3, 70};

// |got − want| ≤ bound(row, column, want) for every element.
template <typename Bound>
void ExpectWithin(const Numbers& got, const Numbers& want, const Bound& bound) {
  const Tensor g = got.tensor(), w = want.tensor();
  for (int64_t t = 0; t < w.rows(); t++)
    for (int64_t i = 0; i < w.cols(); i++)
      ASSERT_LE(std::abs(g.Row<float>(t)[i] - w.Row<double>(t)[i]), bound(t, i, std::abs(w.Row<double>(t)[i]))) << "row " << t << ", column " << i;
}

class RowsTest : public testing::Test {
 protected:
  Device cpu{TestedTable(), Dtype::kF32, 3, 0}, ref{ref::kTable, Dtype::kF64, 1, 0};
  Draws draws{5};

  // body(rows, width, weight dtype) for all shapes at every level.
  template <typename Body>
  void ForShapes(const Body& body) {
    AtEverySimdLevel([&] {
      for (Dtype dtype : kWeightTypes)
        for (int64_t rows : kRowCounts)
          for (int64_t width : kWidths) {
            SCOPED_TRACE(testing::Message() << rows << " rows of " << width << ", weights " << Name(dtype));
            body(rows, width, dtype);
            if (HasFatalFailure()) return;
          }
    });
  }
};

TEST_F(RowsTest, EmbedTakesScaledRowsOfTheTable) {
  ForShapes([&](int64_t rows, int64_t width, Dtype dtype) {
    const Numbers table(dtype, {11, width}, draws.Normal());
    Batch batch;
    for (int64_t t = 0; t < rows; t++) batch.tokens.push_back(static_cast<int32_t>(draws.Int(0, 10)));
    Numbers x(Dtype::kF32, {rows, width}, 3), exact(Dtype::kF64, {rows, width});
    ops::Embed(cpu.ctx, batch, table, 1.7, x);
    ops::Embed(ref.ctx, batch, table.Double(), 1.7, exact);
    ExpectWithin(x, exact, [](int64_t, int64_t, double y) { return 2 * kEps32 * y; });  // the scale and the product are rounded
  });
}

TEST_F(RowsTest, RmsNorm) {
  ForShapes([&](int64_t rows, int64_t width, Dtype dtype) {
    const Numbers x(Dtype::kF32, {rows, width}, draws.Normal(3), 5), w(dtype, {width}, draws.Normal());
    Numbers y(Dtype::kF32, {rows, width}, 2), exact(Dtype::kF64, {rows, width});
    ops::RmsNorm(cpu.ctx, x, w, 1e-5, y);
    ops::RmsNorm(ref.ctx, x.Double(), w.Double(), 1e-5, exact);
    ExpectWithin(y, exact, [&](int64_t, int64_t, double v) { return NormError(static_cast<double>(width)) * v; });
  });
}

TEST_F(RowsTest, AddRmsNormAlsoInPlace) {
  ForShapes([&](int64_t rows, int64_t width, Dtype dtype) {
    Numbers x(Dtype::kF32, {rows, width}, draws.Normal()), y(Dtype::kF32, {rows, width}, draws.Normal(), 4);
    const Numbers w(dtype, {width}, draws.Normal()), xs = x.Double(), ys = y.Double();
    Numbers u(Dtype::kF32, {rows, width}, 1), exact_out(Dtype::kF64, {rows, width}), exact_u = exact_out;
    ops::AddRmsNorm(cpu.ctx, x, y, 0.22, w, 1e-5, x, u);
    ops::AddRmsNorm(ref.ctx, xs, ys, 0.22, w.Double(), 1e-5, exact_out, exact_u);
    ExpectWithin(x, exact_out, [&](int64_t t, int64_t i, double out) {
      return kEps32 * (out + std::abs(0.22 * ys.tensor().Row<double>(t)[i])) * (1 + 2 * kEps32);  // one rounding of the sum, one of the scale
    });
    ops::RmsNorm(ref.ctx, x.Double(), w.Double(), 1e-5, exact_u);  // of the sum as it was rounded: cancellation is not the norm's error
    ExpectWithin(u, exact_u, [&](int64_t, int64_t, double v) { return NormError(static_cast<double>(width)) * v; });
  });
}

TEST_F(RowsTest, GatedRmsNormOfEachGroup) {
  ForShapes([&](int64_t rows, int64_t width, Dtype dtype) {
    for (int64_t groups : {1, 3}) {
      const int64_t columns = groups * width;
      const Numbers y(Dtype::kF32, {rows, columns}, draws.Normal()), z(Dtype::kF32, {rows, columns}, draws.Normal(4), 7), w(dtype, {columns}, draws.Normal());
      Numbers out(Dtype::kF32, {rows, columns}, 2), exact(Dtype::kF64, {rows, columns});
      ops::GatedRmsNorm(cpu.ctx, y, z, w, groups, 1e-5, out);
      ops::GatedRmsNorm(ref.ctx, y.Double(), z.Double(), w.Double(), groups, 1e-5, exact);
      const double error = NormError(static_cast<double>(width), kSiluError + kEps32);
      ExpectWithin(out, exact, [&](int64_t, int64_t, double v) { return error * v; });
    }
  });
}

TEST_F(RowsTest, SwiGluFromTinyToHuge) {
  ForShapes([&](int64_t rows, int64_t width, Dtype dtype) {
    if (dtype != Dtype::kF32) return;
    for (double sigma : {1e-6, 1.0, 30.0, 1e4, 1e18}) {
      const Numbers gate(Dtype::kF32, {rows, width}, draws.Normal(sigma), 2), up(Dtype::kF32, {rows, width}, draws.Normal());
      Numbers y(Dtype::kF32, {rows, width}, 9), exact(Dtype::kF64, {rows, width});
      ops::SwiGlu(cpu.ctx, gate, up, y);
      ops::SwiGlu(ref.ctx, gate.Double(), up.Double(), exact);
      ExpectWithin(y, exact, [&](int64_t t, int64_t i, double v) {
        return (kSiluError + kEps32) * v + kTiny32 * std::abs(static_cast<double>(gate.tensor().Row<float>(t)[i]) * up.tensor().Row<float>(t)[i]);
      });
    }
  });
}

TEST_F(RowsTest, SwiGluInPlaceOfTheGate) {
  AtEverySimdLevel([&] {
    const Numbers gate(Dtype::kF32, {5, 77}, draws.Normal()), up(Dtype::kF32, {5, 77}, draws.Normal());
    Numbers y(Dtype::kF32, {5, 77}), in_place = gate;
    ops::SwiGlu(cpu.ctx, gate, up, y);
    ops::SwiGlu(cpu.ctx, in_place, up, in_place);
    EXPECT_TRUE(SameBits(y.floats(), in_place.floats(), 5 * 77));
  });
}

TEST_F(RowsTest, CrossEntropyOfFlatAndSteepLogits) {
  AtEverySimdLevel([&] {
    for (int64_t vocab : {1, 2, 9, 64, 1023, 1025, 40000})
      for (double sigma : {0.01, 1.0, 60.0, 1e4}) {
        SCOPED_TRACE(testing::Message() << vocab << " logits of " << sigma);
        const int64_t rows = 9;
        const Numbers logits(Dtype::kF32, {rows, vocab}, draws.Normal(sigma), 3);
        std::vector<int32_t> labels;
        for (int64_t t = 0; t < rows; t++) labels.push_back(t % 4 == 3 ? ops::kIgnoredLabel : static_cast<int32_t>(draws.Int(0, vocab - 1)));
        Numbers nll(Dtype::kF32, {rows}), exact(Dtype::kF64, {rows});
        ops::CrossEntropy(cpu.ctx, logits, labels, nll);
        ops::CrossEntropy(ref.ctx, logits.Double(), labels, exact);
        for (int64_t t = 0; t < rows; t++) {
          double range = 0;  // beyond 104 a term is 0 in f32
          for (int64_t i = 0; i < vocab; i++) range = std::max(range, std::abs(2.0 * logits.tensor().Row<float>(t)[i]));
          const double bound = LogSumExpError(std::min(range, 104.0)) + kEps32 * std::abs(exact.doubles()[t]);
          ASSERT_NEAR(nll.floats()[t], exact.doubles()[t], t % 4 == 3 ? 0 : bound) << "row " << t;
        }
      }
  });
}

TEST_F(RowsTest, NotANumberIsNeverHidden) {
  AtEverySimdLevel([&] {
    for (int64_t at : {0, 20, 36}) {
      Numbers x(Dtype::kF32, {1, 37}, draws.Normal());
      const Numbers w(Dtype::kF32, {37}, draws.Normal());
      x.floats()[at] = std::numeric_limits<float>::quiet_NaN();
      Numbers y(Dtype::kF32, {1, 37}), nll(Dtype::kF32, {1});
      const int32_t label = 5;
      ops::CrossEntropy(cpu.ctx, x, {&label, 1}, nll);
      EXPECT_TRUE(std::isnan(nll.floats()[0]));
      ops::SwiGlu(cpu.ctx, x, w.tensor().View({1, 37}), y);
      EXPECT_TRUE(std::isnan(y.floats()[at]));
      ops::RmsNorm(cpu.ctx, x, w, 1e-5, y);
      EXPECT_TRUE(std::isnan(y.floats()[0]));
    }
  });
}

TEST_F(RowsTest, ScaleAndZeroTouchTheirColumnsOnly) {
  AtEverySimdLevel([&] {
    for (int64_t width : kWidths) {
      const Numbers before(Dtype::kF32, {4, width + 3}, draws.Normal());
      Numbers x = before;
      const Tensor columns = x.tensor().Columns({1, width});
      ops::Scale(cpu.ctx, columns, 0.3);
      for (int64_t i = 0; i < 4 * (width + 3); i++) {
        const int64_t column = i % (width + 3);
        ASSERT_EQ(x.floats()[i], column >= 1 && column <= width ? 0.3f * before.floats()[i] : before.floats()[i]);
      }
      ops::Zero(cpu.ctx, columns);
      for (int64_t i = 0; i < 4 * (width + 3); i++) {
        const int64_t column = i % (width + 3);
        ASSERT_EQ(x.floats()[i], column >= 1 && column <= width ? 0 : before.floats()[i]);
      }
    }
    Numbers cube(Dtype::kF32, {2, 3, 5}, draws.Normal());
    ops::Zero(cpu.ctx, cube);
    for (int64_t i = 0; i < 30; i++) ASSERT_EQ(cube.floats()[i], 0);
  });
}

TEST_F(RowsTest, RopeTurnsByThePositionInTheSequence) {
  AtEverySimdLevel([&] {
    for (const auto& [heads, head_dim, dims] : {std::array<int64_t, 3>{1, 2, 2}, {3, 7, 4}, {4, 128, 64}, {2, 300, 300}, {2, 16, 0}}) {
      SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim << ", " << dims << " turn");
      const RopeShape shape = {heads, head_dim, dims, 10000};
      const int64_t rows = 20, columns = heads * head_dim;
      Batch batch;
      batch.tokens.resize(rows);
      batch.sequences = {{.row = 0, .rows = 7}, {.row = 7, .rows = 0, .position = 9, .slot = 1}, {.row = 7, .rows = 13, .position = 4000000, .slot = 0}};
      Numbers x(Dtype::kF32, {rows, columns}, draws.Normal(), 3);
      const Numbers before = x.Double();
      Numbers exact = before;
      ops::Rope(cpu.ctx, x, shape, batch);
      ops::Rope(ref.ctx, exact, shape, batch);
      ExpectWithin(x, exact, [&](int64_t t, int64_t i, double) {
        const int64_t j = i % head_dim, half = dims / 2;
        if (j >= dims) return 0.0;  // stays as it is
        const double* row = before.tensor().Row<double>(t);
        return RotationBound(std::abs(row[i]), std::abs(row[j < half ? i + half : i - half]));
      });
      Numbers single(Dtype::kF32, {1, columns}, draws.Normal());
      Numbers alone = single;
      Batch one = StatelessBatch({0});
      one.sequences[0].position = 4000012, one.sequences[0].slot = 0;
      for (int64_t i = 0; i < columns; i++) single.floats()[i] = static_cast<float>(before.tensor().Row<double>(19)[i]);
      ops::Rope(cpu.ctx, single, shape, one);
      EXPECT_TRUE(SameBits(single.floats(), x.tensor().Row<float>(19), columns)) << "row 19 by itself";
    }
  });
}

}  // namespace
}  // namespace bamba
