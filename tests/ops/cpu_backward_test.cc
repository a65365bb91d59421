// Every backward op of the CPU but Linear's and the scan's against the reference in double; the forward values that some of them read are made here, in double.
#include <array>
#include <cstring>

#include "ops/ops.h"
#include "tests/support/bounds.h"
#include "tests/support/twins.h"

namespace bamba {
namespace {

constexpr int64_t kWidths[] = {1, 7, 8, 16, 17, 33, 100};

Batch Packed(const std::vector<int64_t>& lengths) {
  Batch batch;
  for (int64_t rows : lengths) {
    batch.sequences.push_back({.row = batch.rows(), .rows = rows});
    batch.tokens.resize(batch.tokens.size() + static_cast<size_t>(rows));
  }
  return batch;
}

// 1/√(mean + eps) of the squares value(i), i < n.
template <typename Value>
double InverseRms(int64_t n, double eps, const Value& value) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += value(i) * value(i);
  return 1 / std::sqrt(sum / static_cast<double>(n) + eps);
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(CpuBackward, Embed) {
  for (int64_t dim : kWidths) {
    Twins twins(1);
    const Batch batch = StatelessBatch({3, 0, 3, 6, 5, 3});
    const Twin dx = twins.Input({6, dim}), dtable = twins.Added("dtable", {7, dim});
    twins.Run([&](Context& ctx) { ops::EmbedBackward(ctx, batch, dx(ctx), 1.3, dtable(ctx)); },
              [&] { ExpectNear(dtable, SumBound(6, 6 * 1.3 * dx.Max() + 1)); });
  }
}

TEST(CpuBackward, RmsNormAndAddRmsNorm) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16})
    for (int64_t rows : {0, 1, 70})
      for (int64_t dim : kWidths) {
        const double eps = dim % 2 ? 1e-5 : 0.5;
        Twins twins(static_cast<uint64_t>(dim));
        const Twin x = twins.Input({rows, dim}), w = twins.Parameter({dim}, dtype), dy = twins.Input({rows, dim});
        const Twin dx = twins.Added("dx", {rows, dim}, true), dw = twins.Added("dw", {dim}), scaled = twins.Written("dy", {rows, dim});
        double largest_r = 0;
        for (int64_t t = 0; t < rows; t++) largest_r = std::max(largest_r, InverseRms(dim, eps, [&](int64_t i) { return x[t * dim + i]; }));
        const double bound = NormBackwardBound(dim, largest_r, dy.Max() * w.Max()) + 2 * kEps32;  // and the rounding of the sum with what was there
        const double bound_dw = SumBound(rows + dim, 1 + static_cast<double>(rows) * dy.Max() * x.Max() * largest_r);
        twins.Run(
            [&](Context& ctx) {
              ops::RmsNormBackward(ctx, x(ctx), w(ctx), eps, dy(ctx), dx(ctx), dw(ctx));
              ops::Zero(ctx, scaled(ctx));
            },
            [&] { ExpectNear(dx, bound), ExpectNear(dw, bound_dw); });
        twins.Run([&](Context& ctx) { ops::AddRmsNormBackward(ctx, x(ctx), 0.3, w(ctx), eps, dy(ctx), dx(ctx), scaled(ctx), dw(ctx)); },
                  [&] { ExpectNear(dx, bound), ExpectNear(scaled, bound), ExpectNear(dw, bound_dw); });
        twins.Run([&](Context& ctx) { ops::AddRmsNormBackward(ctx, x(ctx), 0.3, w(ctx), eps, dy(ctx), dx(ctx), scaled(ctx), {}); },
                  [&] { ExpectNear(dx, bound), ExpectNear(scaled, bound), ExpectNear(dw, 0); });
      }
}

TEST(CpuBackward, GatedRmsNorm) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16})
    for (int64_t rows : {0, 1, 40})
      for (int64_t width : kWidths)
        for (int64_t groups : {1, 3}) {
          Twins twins(static_cast<uint64_t>(width));
          const int64_t inner = width * groups;
          const Twin y = twins.Input({rows, inner}), z = twins.Input({rows, inner}, -8, 8), w = twins.Parameter({inner}, dtype),
                     dout = twins.Input({rows, inner});
          const Twin dy = twins.Written("dy", {rows, inner}), dz = twins.Written("dz", {rows, inner}), dw = twins.Added("dw", {inner});
          double largest_r = 0;
          for (int64_t g = 0; g < rows * groups; g++)
            largest_r =
                std::max(largest_r, InverseRms(width, 1e-5, [&](int64_t i) { return y[g * width + i] * z[g * width + i] * Sigmoid(z[g * width + i]); }));
          // dv errs as a norm's dx does; dy = dv silu(z) and dz = dv y silu'(z) multiply by 8 and 2 · 1.1 at most.
          const double bound = 8 * NormBackwardBound(static_cast<double>(width) + kActivationRoundings, largest_r, dout.Max() * w.Max());
          const double bound_dw = SumBound(rows + width + kActivationRoundings, 1 + static_cast<double>(rows) * dout.Max() * 2 * 8 * largest_r);
          twins.Run([&](Context& ctx) { ops::GatedRmsNormBackward(ctx, y(ctx), z(ctx), w(ctx), groups, 1e-5, dout(ctx), dy(ctx), dz(ctx), dw(ctx)); },
                    [&] { ExpectNear(dy, bound), ExpectNear(dz, bound), ExpectNear(dw, bound_dw); });
        }
}

TEST(CpuBackward, CausalConvSilu) {
  for (int64_t width : {1, 2, 3, 4, 7, 64})
    for (int64_t channels : {1, 17, 70, 129})
      for (bool bias : {false, true}) {
        Twins twins(static_cast<uint64_t>(width * channels));
        const Batch batch = Packed({9, 1, 0, 70, 1});
        const int64_t rows = batch.rows();
        const Dtype dtype = std::array{Dtype::kF32, Dtype::kBf16, Dtype::kF16}[static_cast<size_t>(width % 3)];
        const Twin x = twins.Input({rows, channels}), w = twins.Parameter({channels, 1, width}, dtype, -1, 1), dy = twins.Input({rows, channels});
        const Twin b = bias ? twins.Parameter({channels}, dtype) : Twin(), db = bias ? twins.Added("dbias", {channels}) : Twin();
        const Twin dx = twins.Written("dx", {rows, channels}), dw = twins.Added("dw", {channels, 1, width});
        const auto taps = static_cast<double>(width);
        // silu' is at most 1.1 and has a slope of at most 0.5, by which the error of the convolution enters.
        const double g = 1.1 * dy.Max(), conv = SumBound(width + 1, taps * w.Max() * x.Max() + 2);
        const double g_error = dy.Max() * (0.5 * conv + kActivationRoundings * kEps32 * (1 + taps * w.Max() * x.Max() + 2));
        const double bound_dx = taps * w.Max() * g_error + SumBound(width, taps * w.Max() * g);
        const auto bound_sum = [&](double input) {
          return static_cast<double>(rows) * input * g_error + SumBound(rows, static_cast<double>(rows) * input * g + 1);
        };
        twins.Run([&](Context& ctx) { ops::CausalConvSiluBackward(ctx, x(ctx), w(ctx), b(ctx), batch, dy(ctx), dx(ctx), dw(ctx), db(ctx)); },
                  [&] {
                    ExpectNear(dx, bound_dx), ExpectNear(dw, bound_sum(x.Max()));
                    if (bias) ExpectNear(db, bound_sum(1));
                  });
      }
}

TEST(CpuBackward, Rope) {
  for (int64_t dims : {0, 2, 6, 64}) {
    Twins twins(static_cast<uint64_t>(dims));
    Batch batch = Packed({5, 1, 0, 80});
    batch.sequences[1].position = 100'000, batch.sequences[1].slot = 0;
    const RopeShape shape{3, 67, dims, 500};
    const Twin dy = twins.Input({batch.rows(), 3 * 67}), dx = twins.Written("dx", {batch.rows(), 3 * 67});
    twins.Run(
        [&](Context& ctx) {
          for (int64_t t = 0; t < batch.rows(); t++)
            std::memcpy(dx(ctx).Rows(t, 1).data(), dy(ctx).Rows(t, 1).data(), static_cast<size_t>(3 * 67) * SizeOf(ctx.dtype));
          ops::RopeBackward(ctx, dx(ctx), shape, batch);
        },
        [&] { ExpectNear(dx, SumBound(3, 2 * dy.Max())); });
  }
}

// Σ_t P_ts |of_t| over the queries of each key: what dv is for |of| in place of dy.
Tensor WeighedByProbability(Device& ref, const Twin& of, const Twin& q, const Twin& k, const AttentionShape& shape, const Batch& batch) {
  const int64_t rows = q.ref.rows(), columns = q.ref.cols(), kv_columns = k.ref.cols();
  const Tensor absolute = ref.ctx.Temp({rows, columns}), zero = ref.ctx.Temp({rows, columns}), dq = ref.ctx.Temp({rows, columns});
  const Tensor dk = ref.ctx.Temp({rows, kv_columns}), sum = ref.ctx.Temp({rows, kv_columns});
  for (int64_t i = 0; i < of.size(); i++) absolute.as<double>()[i] = std::abs(of[i]);
  ops::Zero(ref.ctx, zero);
  ops::AttentionBackward(ref.ctx, q.ref, k.ref, k.ref, shape, batch, zero, absolute, dq, dk, sum);
  return sum;
}

TEST(CpuBackward, Attention) {
  for (int64_t head_dim : {1, 5, 16, 33})
    for (int64_t kv_heads : {1, 2, 4})
      for (double size : {2.0, 12.0}) {
        Twins twins(static_cast<uint64_t>(head_dim * kv_heads));
        const Batch batch = Packed({70, 1, 0, 2, 64, 150});
        const AttentionShape shape{4, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim))};
        const int64_t rows = batch.rows(), columns = 4 * head_dim, kv_columns = kv_heads * head_dim;
        const Twin q = twins.Input({rows, columns}, -size, size), k = twins.Input({rows, kv_columns}), v = twins.Input({rows, kv_columns});
        const Twin dy = twins.Input({rows, columns});
        Twin y = twins.Input({rows, columns});
        Device ref(ref::kTable, Dtype::kF64, 1, size_t{1} << 24);
        ops::Attention(ref.ctx, q.ref, k.ref, v.ref, shape, batch, {}, y.ref);
        for (int64_t i = 0; i < y.size(); i++) Element<float>(y.cpu, i) = static_cast<float>(y[i]);
        const Twin dq = twins.Written("dq", {rows, columns}), dk = twins.Written("dk", {rows, kv_columns}), dv = twins.Written("dv", {rows, kv_columns});
        const Tensor dk_size = WeighedByProbability(ref, q, q, k, shape, batch), dv_size = WeighedByProbability(ref, dy, q, k, shape, batch);
        const AttentionBackwardBounds bound(shape, 150, q.Max(), k.Max(), v.Max(), dy.Max());
        twins.Run([&](Context& ctx) { ops::AttentionBackward(ctx, q(ctx), k(ctx), v(ctx), shape, batch, y(ctx), dy(ctx), dq(ctx), dk(ctx), dv(ctx)); },
                  [&] {
                    ExpectNear(dq, bound.dq);
                    ExpectNearEach(dk, [&](int64_t i) { return bound.dk * dk_size.as<double>()[i] + kTiny32; });
                    ExpectNearEach(dv, [&](int64_t i) { return bound.dv * dv_size.as<double>()[i] + kTiny32; });
                  });
      }
}

// Keys later than a query weigh nothing, however large their score would be.
TEST(CpuBackward, AttentionMasksHugeScores) {
  Twins twins(1);
  const Batch batch = Packed({66});
  const AttentionShape shape{1, 1, 4, 1};
  const Twin q = twins.Input({66, 4}, 1, 2), k = twins.Input({66, 4}), v = twins.Input({66, 4}), dy = twins.Input({66, 4}), y = twins.Input({66, 4});
  for (int64_t t : {40, 65})
    for (int64_t i = 4 * t; i < 4 * t + 4; i++) Element<double>(k.ref, i) = Element<float>(k.cpu, i) = 1e6f;
  Device ref(ref::kTable, Dtype::kF64, 1, size_t{1} << 20);
  ops::Attention(ref.ctx, q.ref, k.ref, v.ref, shape, batch, {}, y.ref);
  for (int64_t i = 0; i < y.size(); i++) Element<float>(y.cpu, i) = static_cast<float>(y[i]);
  const Twin dq = twins.Written("dq", {66, 4}), dk = twins.Written("dk", {66, 4}), dv = twins.Written("dv", {66, 4});
  twins.Run([&](Context& ctx) { ops::AttentionBackward(ctx, q(ctx), k(ctx), v(ctx), shape, batch, y(ctx), dy(ctx), dq(ctx), dk(ctx), dv(ctx)); },
            [&] {
              const AttentionBackwardBounds bound(shape, 40, q.Max(), 2, v.Max(), dy.Max());  // before the first huge key
              for (int64_t i = 0; i < 4 * 40; i++) EXPECT_LE(std::abs(Element<float>(dq.cpu, i) - dq[i]), bound.dq) << i;
              for (const Twin* t : {&dq, &dk, &dv})
                for (int64_t i = 0; i < t->size(); i++) EXPECT_TRUE(std::isfinite(Element<float>(t->cpu, i))) << t->name << i;
            });
}

TEST(CpuBackward, SwiGlu) {
  for (int64_t width : kWidths)
    for (double size : {3.0, 1e4}) {
      Twins twins(static_cast<uint64_t>(width));
      const Twin gate = twins.Input({5, width}, -size, size), up = twins.Input({5, width}), dy = twins.Input({5, width});
      const Twin dgate = twins.Written("dgate", {5, width}), dup = twins.Written("dup", {5, width});
      twins.Run([&](Context& ctx) { ops::SwiGluBackward(ctx, gate(ctx), up(ctx), dy(ctx), dgate(ctx), dup(ctx)); },
                [&] {
                  const auto bound = [&](int64_t i, double factor) {
                    return kActivationRoundings * kEps32 * std::abs(factor * dy[i]) * std::max(1.0, std::abs(gate[i])) + kTiny32;
                  };
                  ExpectNearEach(dgate, [&](int64_t i) { return bound(i, up[i]); });
                  ExpectNearEach(dup, [&](int64_t i) { return bound(i, 1); });
                });
    }
}

TEST(CpuBackward, CrossEntropy) {
  const std::vector<int32_t> labels = {0, ops::kIgnoredLabel, 0, 0, ops::kIgnoredLabel};
  for (int64_t vocab : {1, 8, 17, 1000})
    for (double size : {3.0, 200.0}) {
      Twins twins(static_cast<uint64_t>(vocab));
      const Twin logits = twins.Input({5, vocab}, -size, size), dlogits = twins.Written("dlogits", {5, vocab}),
                 in_place = twins.Written("in place", {5, vocab});
      std::vector<int32_t> last = labels;
      last[3] = static_cast<int32_t>(vocab) - 1;
      // e^(x − max) errs by the rounding of x − max ≤ 104 (beyond, it is 0), the sum by one rounding for each term.
      const double bound = 0.7 * (SumBound(static_cast<double>(vocab) + 104 + 16, 2) + kTiny32);
      twins.Run(
          [&](Context& ctx) {
            for (int64_t t = 0; t < 5; t++)
              std::memcpy(in_place(ctx).Rows(t, 1).data(), logits(ctx).Rows(t, 1).data(), static_cast<size_t>(vocab) * SizeOf(ctx.dtype));
            ops::CrossEntropyBackward(ctx, in_place(ctx), last, 0.7, in_place(ctx));
            ops::CrossEntropyBackward(ctx, logits(ctx), last, 0.7, dlogits(ctx));
          },
          [&] { ExpectNear(dlogits, bound), ExpectNear(in_place, bound); });
    }
}

}  // namespace
}  // namespace bamba
