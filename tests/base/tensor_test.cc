#include "base/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace bamba {
namespace {

class TensorTest : public testing::Test {
 protected:
  TensorTest() { std::iota(numbers_.begin(), numbers_.end(), 0.0f); }
  std::vector<float> numbers_ = std::vector<float>(2 * 3 * 4);
  Tensor matrix_{numbers_.data(), Dtype::kF32, {6, 4}};
  Tensor cube_{numbers_.data(), Dtype::kF32, {2, 3, 4}};
};

TEST_F(TensorTest, DescribesItself) {
  EXPECT_EQ(cube_.ShapeString(), "[2, 3, 4]");
  EXPECT_EQ(cube_.size(), 24);
  EXPECT_EQ(cube_.bytes(), 96u);
  EXPECT_EQ(cube_.stride(0), 12);
  EXPECT_EQ(cube_.stride(2), 1);
  EXPECT_TRUE(cube_.contiguous());
  EXPECT_FALSE(matrix_.SameShape(cube_));
}

TEST_F(TensorTest, DefaultIsAbsent) {
  Tensor none;
  EXPECT_FALSE(none);
  EXPECT_EQ(none.size(), 0);
  EXPECT_TRUE(matrix_);
}

TEST_F(TensorTest, RowsAndColumnsAreViews) {
  Tensor part = matrix_.Rows(2, 3).Columns({1, 2});
  EXPECT_EQ(part.ShapeString(), "[3, 2]");
  EXPECT_FALSE(part.contiguous());
  for (int64_t r = 0; r < 3; r++)
    for (int64_t c = 0; c < 2; c++) EXPECT_EQ(part.Row<float>(r)[c], static_cast<float>((r + 2) * 4 + c + 1));
  part.Row<float>(0)[0] = -1;
  EXPECT_EQ(numbers_[9], -1);
}

TEST_F(TensorTest, AtTakesOneDimensionAwayAndKeepsStrides) {
  EXPECT_EQ(cube_.At(1).ShapeString(), "[3, 4]");
  EXPECT_EQ(cube_.At(1).At(2).Row<float>(3)[0], 23);
  EXPECT_EQ(cube_.At(1).stride(0), 4);
  EXPECT_EQ(matrix_.Columns({1, 2}).At(5).as<float>()[1], 22);
}

TEST_F(TensorTest, ViewSeesTheSameNumbersInAnotherShape) {
  Tensor view = cube_.View({4, 6});
  EXPECT_EQ(view.Row<float>(3)[5], 23);
  EXPECT_EQ(matrix_.Rows(1, 4).View({16}).as<float>()[0], 4);
}

TEST_F(TensorTest, EmptyPartsAreLegal) {
  EXPECT_EQ(matrix_.Rows(6, 0).size(), 0);
  EXPECT_EQ(matrix_.Columns({4, 0}).size(), 0);
}

// A single row of columns has no neighbour to be far from.
TEST_F(TensorTest, OneRowOfColumnsIsContiguous) { EXPECT_TRUE(matrix_.Rows(0, 1).Columns({1, 2}).contiguous()); }

using TensorDeathTest = TensorTest;

TEST_F(TensorDeathTest, BrokenInvariantsStopWithTheValues) {
  EXPECT_DEATH(matrix_.Rows(5, 2), "rows 5\\+2 of \\[6, 4\\]");
  EXPECT_DEATH(matrix_.Rows(-1, 2), "rows -1");
  EXPECT_DEATH(matrix_.Columns({3, 2}), "columns 3\\+2");
  EXPECT_DEATH(cube_.Columns({0, 1}), "columns");
  EXPECT_DEATH(cube_.At(2), "element 2");
  EXPECT_DEATH(cube_.View({5, 5}), "\\[2, 3, 4\\] seen as \\[5, 5\\]");
  EXPECT_DEATH(matrix_.Columns({0, 2}).View({12}), "strided");
  EXPECT_DEATH(matrix_.as<double>(), "holds f32, asked for f64");
}

}  // namespace
}  // namespace bamba
