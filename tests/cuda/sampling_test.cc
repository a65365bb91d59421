// The GPU's choice of tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/sampler.h"
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

struct Largest {
  std::vector<int32_t> ids;
  std::vector<float> values;
};
Largest Top(Gpu& gpu, const Numbers& logits, int64_t k) {
  const Tensor host = logits, there = gpu.Upload(host);
  const Numbers none(Dtype::kF32, {host.rows(), k});
  const Tensor ids = gpu.Upload(none), values = gpu.Upload(none);
  Gpu::Here()->Top(there, k, static_cast<int32_t*>(ids.data()), values.as<float>());
  Largest found = {std::vector<int32_t>(static_cast<size_t>(host.rows() * k)), std::vector<float>(static_cast<size_t>(host.rows() * k))};
  Gpu::Here()->Download(found.ids.data(), ids.data(), ids.bytes());
  Gpu::Here()->Download(found.values.data(), values.data(), values.bytes());
  gpu.FreeTemporaries();
  return found;
}

TEST(CudaSamplingTest, TheLargestInOrder) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(3);
  Gpu gpu(Dtype::kBf16);
  enum class Kind { kNormal, kFew, kAscending, kEqual };
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {2, 1000}, {3, 1025}, {5, 128256}})
    for (const Kind kind : {Kind::kNormal, Kind::kFew, Kind::kAscending, Kind::kEqual})
      for (const int64_t k : {int64_t{1}, int64_t{2}, int64_t{50}, int64_t{777}, int64_t{1024}}) {
        if (k > vocab) continue;
        int64_t at = 0;
        const Numbers logits(Dtype::kF32, {rows, vocab}, [&, normal = draws.Normal(5)] {
          at++;
          // Ascending: all of the largest at the end; equal: more candidates than shared memory has room for.
          return kind == Kind::kNormal      ? normal()
                 : kind == Kind::kFew       ? static_cast<double>(draws.Int(-3, 3))
                 : kind == Kind::kAscending ? static_cast<double>(at)
                                            : -0.0;
        });
        const Largest found = Top(gpu, logits, k);
        for (int64_t i = 0; i < rows; i++) {
          const float* row = logits.floats() + i * vocab;
          std::vector<int32_t> due(static_cast<size_t>(vocab));
          std::iota(due.begin(), due.end(), 0);
          std::partial_sort(due.begin(), due.begin() + k, due.end(), [&](int32_t a, int32_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
          for (int64_t j = 0; j < k; j++) {
            ASSERT_EQ(found.ids[static_cast<size_t>(i * k + j)], due[static_cast<size_t>(j)]) << j << " of " << k << " of " << vocab;
            ASSERT_EQ(found.values[static_cast<size_t>(i * k + j)], row[due[static_cast<size_t>(j)]]);
          }
        }
      }
}

TEST(CudaSamplingTest, TopReportsWhatIsNotFinite) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(4);
  Gpu gpu(Dtype::kBf16);
  const Numbers logits(Dtype::kF32, {2, 5000}, draws.Normal());
  logits.floats()[4321] = std::numeric_limits<float>::quiet_NaN();
  const Largest found = Top(gpu, logits, 3);
  for (size_t j = 0; j < 3; j++) {
    EXPECT_EQ(found.ids[j], -1);
    EXPECT_GE(found.ids[3 + j], 0);
  }
}

// The sampler chooses the same from the largest logits as from all.
TEST(CudaSamplingTest, TheSameChoice) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  Draws draws(5);
  Gpu gpu(Dtype::kBf16);
  constexpr int64_t kRows = 8, kVocab = 128256;
  SamplerSpace space;
  for (const int64_t k : {int64_t{1}, int64_t{40}, int64_t{1000}}) {
    const Numbers logits(Dtype::kF32, {kRows, kVocab}, draws.Normal(3));
    const Largest found = Top(gpu, logits, k);
    for (int64_t i = 0; i < kRows; i++) {
      Sampler sampler(
          {.temperature = draws.Uniform(0.2, 3)(), .top_k = k, .top_p = i % 2 ? 0.8 : 1, .min_p = i % 3 ? 0 : 0.01, .typical_p = i % 5 ? 1 : 0.7, .seed = 7});
      std::vector<std::pair<int32_t, float>> top;
      for (int64_t j = i * k; j < (i + 1) * k; j++) top.emplace_back(found.ids[static_cast<size_t>(j)], found.values[static_cast<size_t>(j)]);
      std::sort(top.begin(), top.end());
      std::vector<int32_t> ids;
      std::vector<float> values;
      for (const auto& [id, value] : top) ids.push_back(id), values.push_back(value);
      for (uint64_t step = 0; step < 20; step++)
        ASSERT_EQ(sampler.SampleTop(ids, values, step, space), sampler.Sample({logits.floats() + i * kVocab, static_cast<size_t>(kVocab)}, step, space));
    }
  }
}

}  // namespace
}  // namespace bamba
