// Every op's backward on the reference device against the complex step of its forward.
#include <limits>

#include "ops/ops.h"
#include "tests/support/complex_step.h"

namespace bamba {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// One op with random arguments. The scalar that is differentiated is the sum of the outputs, each times a random number.
class OpGradients {
 public:
  using Forward = std::function<void(Context& ctx, const Tensors& in, const Tensors& out)>;
  using Backward = std::function<void(Context& ctx, const Tensors& in, const Tensors& out, const Tensors& dout, const Tensors& din)>;

  explicit OpGradients(uint64_t seed) : random_(seed), seed_(seed) {}

  // An argument whose gradient is written: columns of a wider matrix where it has two dimensions, as activations are.
  void Written(const char* name, const std::vector<int64_t>& shape, double low = -2, double high = 2) {
    variables_.push_back({name, New(shape, true, low, high), New(shape, true, kNaN, kNaN)});
    before_.emplace_back();
  }
  // An argument whose gradient is added to what is there.
  void Added(const char* name, const std::vector<int64_t>& shape, double low = -2, double high = 2) {
    variables_.push_back({name, New(shape, false, low, high), New(shape, false, -1, 1)});
    const Tensor& grad = variables_.back().grad;
    before_.emplace_back(grad.as<double>(), grad.as<double>() + grad.size());
  }
  void Output(const std::vector<int64_t>& shape) { outs_.push_back(New(shape, true, kNaN, kNaN)), douts_.push_back(New(shape, true, -1, 1)); }
  // All elements count alike.
  void OutputOfWeight(const std::vector<int64_t>& shape, double weight) {
    outs_.push_back(New(shape, false, kNaN, kNaN)), douts_.push_back(New(shape, false, weight, weight));
  }

  void Check(const Forward& forward, const Backward& backward) {
    Device device(ref::kTable, Dtype::kF64, 1, size_t{1} << 30);
    Tensors in, din;
    for (const Variable& v : variables_) in.push_back(v.value), din.push_back(v.grad);
    forward(device.ctx, in, outs_);
    backward(device.ctx, in, outs_, douts_, din);
    for (size_t v = 0; v < variables_.size(); v++)
      for (size_t i = 0; i < before_[v].size(); i++) variables_[v].grad.as<double>()[i] -= before_[v][i];

    const ComplexFunction weighted_sum = [&](Context& ctx, const Tensors& arguments) {
      Frame frame(ctx);
      Tensors outs;
      for (const Tensor& out : outs_) outs.push_back(ContiguousLike(out, Dtype::kC128, *ctx.workspace));
      forward(ctx, arguments, outs);
      std::complex<double> sum = 0;
      for (size_t o = 0; o < outs.size(); o++)
        for (int64_t i = 0; i < outs[o].size(); i++) sum += Element<double>(douts_[o], i) * Element<std::complex<double>>(outs[o], i);
      return sum;
    };
    ComplexStep(variables_, weighted_sum).ExpectGradients({8, 64}, seed_);
  }

 private:
  Tensor New(const std::vector<int64_t>& shape, bool wide, double low, double high) {
    Tensor t;
    if (wide && shape.size() == 2)
      t = memory_.Take(Dtype::kF64, {shape[0], shape[1] + 3}).Columns({2, shape[1]});
    else
      t = ContiguousLike(Tensor(nullptr, Dtype::kF64, shape.data(), static_cast<int>(shape.size())), Dtype::kF64, memory_);
    std::uniform_real_distribution<double> unit;
    for (int64_t i = 0; i < t.size(); i++) Element<double>(t, i) = low + (high - low) * unit(random_);
    return t;
  }

  std::mt19937_64 random_;
  uint64_t seed_;
  Workspace memory_{size_t{1} << 30};
  std::vector<Variable> variables_;
  std::vector<std::vector<double>> before_;
  Tensors outs_, douts_;
};

void Copy(const Tensor& from, const Tensor& to) {
  for (int64_t i = 0; i < from.size(); i++) {
    if (from.dtype() == Dtype::kF64)
      Element<double>(to, i) = Element<double>(from, i);
    else
      Element<std::complex<double>>(to, i) = Element<std::complex<double>>(from, i);
  }
}

// Stateless documents of these lengths, packed.
Batch Packed(const std::vector<int64_t>& lengths) {
  Batch batch;
  for (int64_t rows : lengths) {
    batch.sequences.push_back({.row = batch.rows(), .rows = rows});
    batch.tokens.resize(batch.tokens.size() + static_cast<size_t>(rows));
  }
  return batch;
}

TEST(RefBackward, Embed) {
  const Batch batch = StatelessBatch({3, 0, 3, 6, 5, 3});
  OpGradients op(1);
  op.Added("table", {7, 5});
  op.Output({6, 5});
  op.Check(
      [&](Context& ctx, const Tensors& in, const Tensors& out) { ops::Embed(ctx, batch, in[0], 1.3, out[0]); },
      [&](Context& ctx, const Tensors&, const Tensors&, const Tensors& dout, const Tensors& din) { ops::EmbedBackward(ctx, batch, dout[0], 1.3, din[0]); });
}

TEST(RefBackward, Linear) {
  for (bool bias : {false, true})
    for (Into into : {Into::kWrite, Into::kAdd}) {
      OpGradients op(2);
      into == Into::kWrite ? op.Written("x", {9, 13}) : op.Added("x", {9, 13});
      op.Added("weight", {5, 13});
      if (bias) op.Added("bias", {5});
      op.Output({9, 5});
      const auto weight = [&](const Tensors& t) { return LinearWeight{t[1], bias ? t[2] : Tensor()}; };
      op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::Linear(ctx, in[0], weight(in), out[0]); },
               [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
                 ops::LinearBackward(ctx, in[0], weight(in), dout[0], into, din[0], weight(din));
               });
    }
}

TEST(RefBackward, RmsNorm) {
  for (double eps : {0.0, 1e-5, 0.5}) {
    OpGradients op(3);
    op.Added("x", {7, 11});
    op.Added("w", {11});
    op.Output({7, 11});
    op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::RmsNorm(ctx, in[0], in[1], eps, out[0]); },
             [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
               ops::RmsNormBackward(ctx, in[0], in[1], eps, dout[0], din[0], din[1]);
             });
  }
}

TEST(RefBackward, AddRmsNorm) {
  OpGradients op(4);
  op.Written("x", {7, 11});
  op.Written("y", {7, 11});
  op.Added("w", {11});
  op.Output({7, 11});
  op.Output({7, 11});
  op.Check([](Context& ctx, const Tensors& in, const Tensors& out) { ops::AddRmsNorm(ctx, in[0], in[1], 0.3, in[2], 1e-5, out[0], out[1]); },
           [](Context& ctx, const Tensors& in, const Tensors& out, const Tensors& dout, const Tensors& din) {
             Copy(dout[0], din[0]);
             ops::AddRmsNormBackward(ctx, out[0], 0.3, in[2], 1e-5, dout[1], din[0], din[1], din[2]);
           });
}

TEST(RefBackward, CausalConvSilu) {
  const Batch batch = Packed({9, 1, 0, 4, 1});
  for (int64_t d_conv : {1, 2, 3, 4, 6, 12})
    for (bool bias : {false, true}) {
      OpGradients op(static_cast<uint64_t>(d_conv));
      op.Written("x", {15, 5});
      op.Added("w", {5, 1, d_conv});
      if (bias) op.Added("bias", {5});
      op.Output({15, 5});
      const auto optional = [&](const Tensors& t) { return bias ? t[2] : Tensor(); };
      op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::CausalConvSilu(ctx, in[0], in[1], optional(in), batch, {}, out[0]); },
               [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
                 ops::CausalConvSiluBackward(ctx, in[0], in[1], optional(in), batch, dout[0], din[0], din[1], optional(din));
               });
    }
}

struct ScanCase {
  SsdShape shape;
  std::vector<int64_t> lengths;
  bool initial = false;
  double dt_low = -3, dt_high = 2;
};

void CheckScan(const ScanCase& c, uint64_t seed) {
  const SsdShape& shape = c.shape;
  Batch batch = Packed(c.lengths);
  const auto sequences = static_cast<int64_t>(batch.sequences.size());
  // With initial states, the sequences continue at the first chunk boundary.
  for (int64_t i = 0; c.initial && i < sequences; i++) batch.sequences[i].position = kSsdChunk, batch.sequences[i].slot = static_cast<int32_t>(i);
  OpGradients op(seed);
  op.Written("xbc", {batch.rows(), shape.conv_dim()});
  op.Written("dt", {batch.rows(), shape.heads}, c.dt_low, c.dt_high);
  op.Added("dt_bias", {shape.heads});
  op.Added("A_log", {shape.heads}, -1, 3);
  op.Added("D", {shape.heads});
  if (c.initial) op.Written("initial", {sequences, shape.heads, shape.head_dim, shape.state});
  op.Output({batch.rows(), shape.inner()});
  op.Check(
      [&](Context& ctx, const Tensors& in, const Tensors& out) {
        Frame frame(ctx);
        MambaState state;
        if (c.initial) {
          state = {{},
                   ctx.Temp({sequences, kSsdChunk, shape.conv_dim()}),
                   ctx.Temp({sequences, kSsdChunk, shape.heads}),
                   ctx.Temp({sequences, 1, shape.heads, shape.head_dim, shape.state})};
          Copy(in[5], state.ssm);
        }
        ops::SsdScan(ctx, in[0], in[1], in[2], in[3], in[4], shape, batch, state, out[0]);
      },
      [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
        ops::SsdScanBackward(ctx, in[0], in[1], in[2], in[3], in[4], shape, batch, c.initial ? in[5] : Tensor(), dout[0], din[0], din[1], din[2], din[3],
                             din[4], c.initial ? din[5] : Tensor());
      });
}

TEST(RefBackward, SsdScan) {
  CheckScan({{1, 1, 1, 1, 0, kInf}, {70}}, 10);
  CheckScan({{4, 3, 5, 1, 0, kInf}, {70}}, 11);
  CheckScan({{4, 3, 5, 2, 0, kInf}, {33, 1, 0, 32, 1}}, 12);
  CheckScan({{6, 2, 3, 6, 0, kInf}, {40, 30}}, 13);
}

TEST(RefBackward, SsdScanFromInitialStates) {
  CheckScan({{4, 3, 5, 2, 0, kInf}, {70}, true}, 20);
  CheckScan({{2, 3, 4, 1, 0, kInf}, {33, 1, 0, 32}, true}, 21);
}

TEST(RefBackward, SsdScanWithClampedTimeSteps) { CheckScan({{4, 3, 5, 2, 0.2, 0.9}, {33, 1, 36}}, 30); }

// From dt = e^−700, which decays nothing, to 1,000, which leaves nothing.
TEST(RefBackward, SsdScanWithExtremeTimeSteps) { CheckScan({{4, 3, 5, 2, 0, kInf}, {33, 1, 36}, true, -700, 1000}, 31); }

TEST(RefBackward, GatedRmsNorm) {
  for (int64_t groups : {1, 2, 3, 12}) {
    OpGradients op(static_cast<uint64_t>(40 + groups));
    op.Written("y", {7, 12});
    op.Written("z", {7, 12}, -6, 6);
    op.Added("w", {12});
    op.Output({7, 12});
    op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::GatedRmsNorm(ctx, in[0], in[1], in[2], groups, 1e-5, out[0]); },
             [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
               ops::GatedRmsNormBackward(ctx, in[0], in[1], in[2], groups, 1e-5, dout[0], din[0], din[1], din[2]);
             });
  }
}

TEST(RefBackward, Rope) {
  const Batch batch = Packed({5, 1, 8});
  for (int64_t dims : {0, 2, 6, 8}) {
    const RopeShape shape{3, 8, dims, 500};
    OpGradients op(static_cast<uint64_t>(50 + dims));
    op.Written("x", {14, 24});
    op.Output({14, 24});
    op.Check(
        [&](Context& ctx, const Tensors& in, const Tensors& out) {
          Copy(in[0], out[0]);
          ops::Rope(ctx, out[0], shape, batch);
        },
        [&](Context& ctx, const Tensors&, const Tensors&, const Tensors& dout, const Tensors& din) {
          Copy(dout[0], din[0]);
          ops::RopeBackward(ctx, din[0], shape, batch);
        });
  }
}

TEST(RefBackward, Attention) {
  const Batch batch = Packed({70, 1, 0, 2});
  for (int64_t kv_heads : {1, 2, 4}) {
    const AttentionShape shape{4, kv_heads, 5, 0.8};
    OpGradients op(static_cast<uint64_t>(60 + kv_heads));
    op.Written("q", {73, 20});
    op.Written("k", {73, kv_heads * 5});
    op.Written("v", {73, kv_heads * 5});
    op.Output({73, 20});
    op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::Attention(ctx, in[0], in[1], in[2], shape, batch, {}, out[0]); },
             [&](Context& ctx, const Tensors& in, const Tensors& out, const Tensors& dout, const Tensors& din) {
               ops::AttentionBackward(ctx, in[0], in[1], in[2], shape, batch, out[0], dout[0], din[0], din[1], din[2]);
             });
  }
}

TEST(RefBackward, SwiGlu) {
  OpGradients op(70);
  op.Written("gate", {7, 9}, -20, 20);
  op.Written("up", {7, 9});
  op.Output({7, 9});
  op.Check([](Context& ctx, const Tensors& in, const Tensors& out) { ops::SwiGlu(ctx, in[0], in[1], out[0]); },
           [](Context& ctx, const Tensors& in, const Tensors&, const Tensors& dout, const Tensors& din) {
             ops::SwiGluBackward(ctx, in[0], in[1], dout[0], din[0], din[1]);
           });
}

TEST(RefBackward, CrossEntropy) {
  const std::vector<int32_t> labels = {3, ops::kIgnoredLabel, 0, 12, 3};
  const double scale = 0.7;
  OpGradients op(80);
  op.Written("logits", {5, 13}, -30, 30);
  op.OutputOfWeight({5}, scale);
  op.Check([&](Context& ctx, const Tensors& in, const Tensors& out) { ops::CrossEntropy(ctx, in[0], labels, out[0]); },
           [&](Context& ctx, const Tensors& in, const Tensors&, const Tensors&, const Tensors& din) {
             Copy(in[0], din[0]);  // in place, as the loss calls it
             ops::CrossEntropyBackward(ctx, din[0], labels, scale, din[0]);
           });
}

}  // namespace
}  // namespace bamba
