// The scan's backward on the CPU, in chunks, against the recurrence in double.
#include <array>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "ops/ops.h"
#include "tests/support/bounds.h"
#include "tests/support/ssd_recurrence.h"

namespace bamba {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Squares of errors relative to what they are errors of.
struct Errors {
  double ours = 0, naive = 0;
  int64_t count = 0;
};

struct Case {
  SsdShape shape;
  std::vector<int64_t> lengths;
  bool initial = false;
  Dtype weights = Dtype::kF32;
  double dt_low = -3, dt_high = 2;
  double extreme = 0;  // share of the raw time steps that are ±10⁴
};

class ScanBackwardTest : public testing::Test {
 protected:
  void Check(const Case& c, uint64_t seed) {
    const SsdShape& shape = c.shape;
    Twins twins(seed);
    ScanInputs in{shape, {}, {}, {}, {}, {}, {}, {}, {}};
    for (int64_t rows : c.lengths) {
      Sequence s{.row = in.batch.rows(), .rows = rows};
      if (c.initial) s.position = kSsdChunk * static_cast<int64_t>(1 + twins.random()() % 3), s.slot = 0;
      in.batch.sequences.push_back(s);
      in.batch.tokens.resize(in.batch.tokens.size() + static_cast<size_t>(rows));
    }
    const int64_t rows = in.batch.rows();
    const std::vector<int64_t> states = {std::ssize(in.batch.sequences), shape.heads, shape.head_dim, shape.state};
    in.xbc = twins.Input({rows, shape.conv_dim()});
    in.dt = twins.Input({rows, shape.heads}, c.dt_low, c.dt_high);
    MakeExtreme(in.dt, c.extreme, twins.random());
    in.dt_bias = twins.Parameter({shape.heads}, c.weights);
    in.a_log = twins.Parameter({shape.heads}, c.weights, -1, 3);
    in.d = twins.Parameter({shape.heads}, c.weights);
    in.dy = twins.Input({rows, shape.inner()});
    const Twin dxbc = twins.Written("dxbc", {rows, shape.conv_dim()}), ddt = twins.Written("ddt", {rows, shape.heads});
    Twin dinitial;
    if (c.initial) in.initial = twins.Parameter(states), dinitial = twins.Written("dinitial", states);
    const Twin ddt_bias = twins.Added("ddt_bias", {shape.heads}), da_log = twins.Added("dA_log", {shape.heads}), dd = twins.Added("dD", {shape.heads});
    std::vector<double> before;
    for (const Twin* t : {&ddt_bias, &da_log, &dd})
      for (int64_t h = 0; h < shape.heads; h++) before.push_back((*t)[h]);

    const ScanRecurrence<double> size(in, true);
    const ScanRecurrence<float> naive(in, false);
    const double bound = ScanBackwardBound(shape, rows);
    twins.Run(
        [&](Context& ctx) {
          ops::SsdScanBackward(ctx, in.xbc(ctx), in.dt(ctx), in.dt_bias(ctx), in.a_log(ctx), in.d(ctx), shape, in.batch, in.initial(ctx), in.dy(ctx), dxbc(ctx),
                               ddt(ctx), ddt_bias(ctx), da_log(ctx), dd(ctx), dinitial(ctx));
        },
        [&] {
          Compare(dxbc, size.dxbc, naive.dxbc, nullptr, bound);
          Compare(ddt, size.ddt, naive.ddt, nullptr, bound);
          if (c.initial) Compare(dinitial, size.dinitial, naive.dinitial, nullptr, bound);
          Compare(ddt_bias, size.ddt_bias, naive.ddt_bias, before.data(), bound);
          Compare(da_log, size.da_log, naive.da_log, before.data() + shape.heads, bound);
          Compare(dd, size.dd, naive.dd, before.data() + 2 * shape.heads, bound);
        });
  }

  // Over all that was checked, the errors of the chunked form and of the recurrence in float, by output.
  std::map<std::string, Errors> errors_;

 private:
  static void MakeExtreme(const Twin& dt, double share, std::mt19937_64& random) {
    std::uniform_real_distribution<double> uniform;
    for (int64_t i = 0; i < dt.size(); i++)
      if (uniform(random) < share) Element<double>(dt.ref, i) = Element<float>(dt.cpu, i) = uniform(random) < 0.5 ? -1e4f : 1e4f;
  }

  void Compare(const Twin& twin, const std::vector<double>& size, const std::vector<float>& naive, const double* before, double bound) {
    ExpectNearEach(twin, [&](int64_t i) { return bound * (size[i] + (before ? std::abs(before[i]) : 0)) + kScanBackwardUnderflow; });
    Errors& errors = errors_[twin.name];
    for (int64_t i = 0; i < twin.size(); i++) {
      if (size[i] < kScanBackwardUnderflow / kEps32) continue;
      const double base = before ? before[i] : 0, scale = size[i] + std::abs(base);
      errors.ours += std::pow((Element<float>(twin.cpu, i) - twin[i]) / scale, 2);
      errors.naive += std::pow((static_cast<double>(naive[i]) + base - twin[i]) / scale, 2);
      errors.count++;
    }
  }
};

Case RandomCase(std::mt19937_64& random) {
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
  Case c;
  c.shape.groups = pick({1, 1, 2, 3});
  c.shape.heads = c.shape.groups * pick({1, 2, 3});
  c.shape.head_dim = pick({1, 2, 3, 7, 8, 16, 19, 33});
  c.shape.state = pick({1, 2, 5, 8, 16, 24, 33});
  c.shape.dt_min = random() % 3 ? 0 : 0.05;
  c.shape.dt_max = random() % 3 ? kInf : 0.8;
  for (int64_t i = pick({1, 1, 2, 4}); i > 0; i--) c.lengths.push_back(pick({0, 1, 1, 2, 5, 31, 32, 33, 64, 65, 97, 130}));
  c.initial = random() % 2;
  c.weights = std::array{Dtype::kF32, Dtype::kBf16, Dtype::kF16}[random() % 3];
  switch (random() % 4) {
    case 0: break;
    case 1: c.dt_low = -1e4, c.dt_high = 1e4; break;
    case 2: c.dt_low = -60, c.dt_high = 60; break;
    case 3: c.extreme = 0.1; break;
  }
  return c;
}

TEST_F(ScanBackwardTest, RandomShapes) {
  std::mt19937_64 random(1);
  const int trials = FullTests() ? 1500 : 100;
  for (int i = 0; i < trials && !HasFailure(); i++) {
    SCOPED_TRACE("trial " + std::to_string(i));
    Check(RandomCase(random), static_cast<uint64_t>(i));
  }
  for (const auto& [name, errors] : errors_) {
    const double ours = std::sqrt(errors.ours / static_cast<double>(errors.count)), naive = std::sqrt(errors.naive / static_cast<double>(errors.count));
    EXPECT_LE(ours, 2 * naive) << name << ": relative error, root mean square of " << errors.count;
    RecordProperty(name, fmt::format("{:.2e} against {:.2e}", ours, naive));
  }
}

// The sizes of Bamba-9B's heads, more than one segment of checkpoints.
TEST_F(ScanBackwardTest, ManyChunksOfTheRealHead) { Check({{2, 64, 128, 1, 0, kInf}, {15 * kSsdChunk + 7}, true}, 2); }

// One huge step decays everything before it, and must not touch the digits of the small steps behind it.
TEST_F(ScanBackwardTest, SmallStepsBehindAHugeOne) {
  for (uint64_t seed = 0; seed < 5; seed++) Check({{2, 8, 8, 1, 0, kInf}, {kSsdChunk, 50}, false, Dtype::kF32, -8, -4, 0.03}, seed);
  for (const auto& [name, errors] : errors_) EXPECT_LE(errors.ours, 4 * errors.naive) << name;
}

}  // namespace
}  // namespace bamba
