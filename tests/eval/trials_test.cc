#include "eval/trials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "ops/op_table.h"
#include "tests/support/random_model.h"
#include "tests/support/simd_levels.h"

namespace bamba {
namespace {

const auto kSilent = [](const TrialReport&) {};

Config OddConfig() {
  Config c = TinyConfig(3, {1});
  c.dim = 21, c.ffn = 19, c.vocab = 37;
  return c;
}

TEST(Trials, NoBitDiffersAtAnySimdLevel) {
  const int64_t trials = std::getenv("BAMBA_FULL") ? 5000 : 60;
  AtEverySimdLevel([&] {
    for (const Config& config : {OddConfig(), TinyConfig(2, {}), TinyConfig(1, {0})}) {
      for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
        const Model model = RandomModel(config, 1, dtype);
        int64_t calls = 0;
        const TrialReport report = RunTrials(model, {.trials = trials, .seed = 7, .execution = {.threads = 2}, .name = "m"},
                                             [&](const TrialReport& r) { EXPECT_EQ(r.trials, ++calls); });
        EXPECT_EQ(report.differing_bits, 0) << report.first;
        EXPECT_EQ(report.failed, 0);
        EXPECT_EQ(report.trials, trials);
        for (int64_t n : {report.rows, report.states, report.forks, report.snapshots, report.roll_backs, report.files}) EXPECT_GT(n, 0);
      }
    }
  });
}

// Broken in ways that the trials are there to find.

void DependsOnRows(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  cpu::Linear(ctx, x, w, y);
  if (x.rows() >= 8) y.as<float>()[0] *= 1 + 0x1p-23f;
}

void DependsOnThreads(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y) {
  cpu::SwiGlu(ctx, gate, up, y);
  if (ctx.threads->threads() == 3) y.as<float>()[0] *= 1 + 0x1p-23f;
}

void ForgetsTheInputs(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
                      const Batch& batch, const MambaState& state, const Tensor& y) {
  cpu::SsdScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
  for (const Sequence& s : batch.sequences)
    if (s.position == 40) state.dt.At(s.slot).At(40 % state.dt.shape(1)).as<float>()[0] += 1;
}

TEST(Trials, FindWhatIsBroken) {
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  const auto differing = [&](const OpTable& table) {
    return RunTrials(model, {.trials = 200, .execution = {.threads = 2}, .device = &table, .name = "m"}, kSilent);
  };
  OpTable table = cpu::kTable;
  table.Linear = &DependsOnRows;
  EXPECT_GT(differing(table).failed, 100);
  table = cpu::kTable;
  table.SwiGlu = &DependsOnThreads;
  EXPECT_GT(differing(table).failed, 100);
  table = cpu::kTable;
  table.SsdScan = &ForgetsTheInputs;
  const TrialReport report = differing(table);
  EXPECT_GT(report.failed, 0);
  EXPECT_GT(report.differing_bits, 0);
  EXPECT_THAT(report.first, testing::HasSubstr("--trials 1 --seed "));

  // A failed trial fails by itself too.
  const uint64_t seed = std::stoull(report.first.substr(report.first.rfind(' ')));
  EXPECT_EQ(RunTrials(model, {.trials = 1, .seed = seed, .execution = {.threads = 2}, .device = &table, .name = "m"}, kSilent).failed, 1);
}

}  // namespace
}  // namespace bamba
