// The GPU's choice of tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/gpu.h"
#include "tests/support/numbers.h"

namespace bamba {
namespace {

std::vector<int32_t> ArgMax(Gpu& gpu, const Numbers& logits) {
  const Tensor host = logits, there = gpu.Upload(host);
  std::vector<int32_t> tokens(static_cast<size_t>(host.rows()), 12345);
  auto* const chosen = static_cast<int32_t*>(gpu.ctx.workspace->Allocate(tokens.size() * sizeof(int32_t)));
  Gpu::Here()->Upload(chosen, tokens.data(), tokens.size() * sizeof(int32_t));
  Gpu::Here()->ArgMax(there, chosen);
  Gpu::Here()->Download(tokens.data(), chosen, tokens.size() * sizeof(int32_t));
  return tokens;
}

TEST(CudaSamplingTest, TheLargestLogitAndTheLowestIdAmongEquals) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(1);
  Gpu gpu(Dtype::kBf16);
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {7, 31}, {5, 2047}, {4, 2048}, {3, 2049}, {64, 128256}, {2, 151937}}) {
    // Few different values: there are equal ones in every row.
    const Numbers logits(Dtype::kF32, {rows, vocab}, [&] { return static_cast<double>(draws.Int(-20, vocab > 100 ? -1 : 3)); });
    const std::vector<int32_t> chosen = ArgMax(gpu, logits);
    for (int64_t i = 0; i < rows; i++) {
      const float* row = logits.floats() + i * vocab;
      EXPECT_EQ(chosen[static_cast<size_t>(i)], std::max_element(row, row + vocab) - row) << rows << " x " << vocab << ", row " << i;
    }
    gpu.FreeTemporaries();
  }
}

TEST(CudaSamplingTest, ZeroHasNoSign) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Gpu gpu(Dtype::kBf16);
  Numbers logits(Dtype::kF32, {2, 5000});
  std::fill_n(logits.floats(), 10000, -1.f);
  logits.floats()[17] = -0.f, logits.floats()[4000] = 0.f, logits.floats()[5030] = 0.f, logits.floats()[5040] = -0.f;
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{17, 30}));
}

TEST(CudaSamplingTest, WhatIsNotFiniteIsReported) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(2);
  Gpu gpu(Dtype::kBf16);
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const Numbers logits(Dtype::kF32, {6, 128256}, draws.Normal());
  float* const x = logits.floats();
  x[0] = kNan, x[128256 * 2 - 1] = -kNan, x[128256 * 2 + 777] = kInfinity, x[128256 * 3 + 70000] = -kInfinity;
  x[128256 * 4 + 9] = std::numeric_limits<float>::max(), x[128256 * 5 + 128255] = 100;
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{-1, -1, -1, -1, 9, 128255}));
  EXPECT_EQ(ArgMax(gpu, logits), (std::vector<int32_t>{-1, -1, -1, -1, 9, 128255}));  // counters are as before
}

}  // namespace
}  // namespace bamba
