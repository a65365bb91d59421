// Ops that look along a sequence (convolution, scan, attention): the reference in double is within the bound, and the same bits come out of any split.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/numbers.h"
#include "tests/support/simd_levels.h"
#include "tests/support/tested.h"

namespace bamba {
namespace {

constexpr Dtype kWeightTypes[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};

void Poison(const Numbers& n) {
  const Tensor t = n;
  std::fill_n(t.as<float>(), t.size(), std::numeric_limits<float>::quiet_NaN());
}

// An op of random shape with its weights, and state for some sequences. Inputs are the columns of one matrix.
class SequenceOp {
 public:
  virtual ~SequenceOp() = default;
  int64_t in = 0, out = 0;  // columns

  // Empty state, full of NaN: what a sequence has not written must never matter.
  virtual void MakeState(int slots, int64_t tokens, Draws& draws) = 0;
  // Runs with the state, or without where `batch` has no slots.
  virtual void Run(Context& ctx, const Tensor& x, Batch batch, const Tensor& y) = 0;
  // What the slot must hold after `tokens` tokens.
  virtual std::vector<float> Kept(int slot, int64_t tokens) = 0;
  virtual std::function<double()> Inputs(Draws& draws) { return draws.Normal(); }
  // Slots reach this far back from any position.
  virtual int64_t Reach() = 0;
};

void AppendRow(std::vector<float>& to, const Tensor& ring, int slot, int64_t entry) {
  const Tensor row = ring.At(slot);
  to.insert(to.end(), row.Row<float>(entry), row.Row<float>(entry) + row.stride(0));
}

class ConvOp : public SequenceOp {
 public:
  ConvOp(Draws& draws, Dtype dtype, int64_t channels, int64_t d_conv, bool with_bias, int64_t ring)
      : w(dtype, {channels, 1, d_conv}, draws.Normal()), d_conv(d_conv), ring_(ring) {
    in = out = channels;
    if (with_bias) bias = Numbers(dtype, {channels}, draws.Normal()), bias_tensor = bias;
  }
  static std::unique_ptr<SequenceOp> Random(Draws& draws) {
    const int64_t d_conv = draws.Int(0, 3) == 0 ? draws.Int(1, 64) : draws.Int(1, 5);
    return std::make_unique<ConvOp>(draws, kWeightTypes[draws.Int(0, 2)], draws.Int(1, 150), d_conv, draws.Int(0, 1), d_conv - 1 + draws.Int(0, 40));
  }
  void MakeState(int slots, int64_t, Draws&) override {
    conv_ = Numbers(Dtype::kF32, {slots, ring_, in});
    Poison(conv_);
  }
  void Run(Context& ctx, const Tensor& x, Batch batch, const Tensor& y) override { ops::CausalConvSilu(ctx, x, w, bias_tensor, batch, {.conv = conv_}, y); }
  std::vector<float> Kept(int slot, int64_t tokens) override {
    std::vector<float> kept;
    for (int64_t t = std::max<int64_t>(0, tokens - ring_); t < tokens; t++) AppendRow(kept, conv_, slot, t % ring_);
    return kept;
  }
  int64_t Reach() override { return ring_ - (d_conv - 1); }

  Numbers w, bias;
  Tensor bias_tensor;
  int64_t d_conv;

 private:
  int64_t ring_;
  Numbers conv_;
};

class SsdOp : public SequenceOp {
 public:
  SsdOp(Draws& draws, Dtype dtype, const SsdShape& shape, int64_t ring = kSsdChunk, int64_t boundaries = 1)
      : shape(shape),
        dt_bias(dtype, {shape.heads}, draws.Uniform(-5, -1)),
        a_log(dtype, {shape.heads}, draws.Uniform(0, 2.7)),
        d(dtype, {shape.heads}, draws.Uniform(0.5, 1.5)),
        ring_(ring),
        boundaries_(boundaries) {
    in = shape.conv_dim() + shape.heads, out = shape.inner();
  }
  static std::unique_ptr<SequenceOp> Random(Draws& draws) {
    SsdShape shape = {.head_dim = draws.Int(1, 40), .state = draws.Int(1, 40), .groups = draws.Int(1, 3)};
    if (draws.Int(0, 7) == 0) shape.head_dim = 70, shape.state = 300;  // more than one piece of a head's state
    shape.heads = shape.groups * draws.Int(1, 3);
    shape.dt_max = draws.Int(0, 1) ? 0.5 : std::numeric_limits<double>::infinity();
    const int64_t boundaries = draws.Int(1, 3);
    return std::make_unique<SsdOp>(draws, kWeightTypes[draws.Int(0, 2)], shape, kSsdChunk * (boundaries + draws.Int(0, 1)), boundaries);
  }
  void MakeState(int slots, int64_t, Draws&) override {
    xbc_ = Numbers(Dtype::kF32, {slots, ring_, shape.conv_dim()}), dt_ = Numbers(Dtype::kF32, {slots, ring_, shape.heads});
    ssm_ = Numbers(Dtype::kF32, {slots, boundaries_, shape.heads, shape.head_dim, shape.state});
    for (const Numbers* n : {&xbc_, &dt_, &ssm_}) Poison(*n);
  }
  void Run(Context& ctx, const Tensor& x, Batch batch, const Tensor& y) override {
    ops::SsdScan(ctx, x.Columns({0, shape.conv_dim()}), x.Columns({shape.conv_dim(), shape.heads}), dt_bias, a_log, d, shape, batch,
                 {.xbc = xbc_, .dt = dt_, .ssm = ssm_}, y);
  }
  std::vector<float> Kept(int slot, int64_t tokens) override {
    std::vector<float> kept;
    for (int64_t t = std::max<int64_t>(0, tokens - ring_); t < tokens; t++) AppendRow(kept, xbc_, slot, t % ring_), AppendRow(kept, dt_, slot, t % ring_);
    const int64_t last = tokens / kSsdChunk;
    for (int64_t chunk = std::max<int64_t>(1, last - boundaries_ + 1); chunk <= last; chunk++) AppendRow(kept, ssm_, slot, chunk % boundaries_);
    return kept;
  }
  int64_t Reach() override { return kSsdChunk * (boundaries_ - 1); }

  SsdShape shape;
  Numbers dt_bias, a_log, d;

 private:
  int64_t ring_, boundaries_;
  Numbers xbc_, dt_, ssm_;
};

class AttentionOp : public SequenceOp {
 public:
  explicit AttentionOp(const AttentionShape& shape) : shape(shape) {
    in = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, out = shape.heads * shape.head_dim;
  }
  static std::unique_ptr<SequenceOp> Random(Draws& draws) {
    AttentionShape shape = {.kv_heads = draws.Int(1, 3), .head_dim = draws.Int(1, 70), .scale = 0.7};
    shape.heads = shape.kv_heads * draws.Int(1, 3);
    return std::make_unique<AttentionOp>(shape);
  }
  void MakeState(int slots, int64_t tokens, Draws& draws) override {
    const int64_t pages = (tokens + kKvBlock - 1) / kKvBlock;
    tables_.assign(static_cast<size_t>(slots), std::vector<int32_t>(static_cast<size_t>(pages)));
    std::vector<int32_t> all(static_cast<size_t>(slots * pages));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), draws.random());
    for (auto& table : tables_)
      for (int32_t& page : table) page = all.back(), all.pop_back();
    k_ = v_ = Numbers(Dtype::kF32, {slots * pages, kKvBlock, shape.kv_heads, shape.head_dim});
    Poison(k_), Poison(v_);
  }
  void Run(Context& ctx, const Tensor& x, Batch batch, const Tensor& y) override {
    for (Sequence& s : batch.sequences)
      if (s.slot >= 0) s.pages = tables_[static_cast<size_t>(s.slot)].data();
    const int64_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
    ops::Attention(ctx, x.Columns({0, q}), x.Columns({q, kv}), x.Columns({q + kv, kv}), shape, batch, tables_.empty() ? KvPages{} : KvPages{k_, v_}, y);
  }
  std::vector<float> Kept(int slot, int64_t tokens) override {
    std::vector<float> kept;
    for (int64_t t = 0; t < tokens; t++) {
      const int32_t page = tables_[static_cast<size_t>(slot)][static_cast<size_t>(t / kKvBlock)];
      AppendRow(kept, k_, page, t % kKvBlock), AppendRow(kept, v_, page, t % kKvBlock);
    }
    return kept;
  }
  int64_t Reach() override { return std::numeric_limits<int64_t>::max(); }

  AttentionShape shape;

 private:
  std::vector<std::vector<int32_t>> tables_;
  Numbers k_, v_;
};

Numbers RunStateless(SequenceOp& op, Context& ctx, const Numbers& x) {
  Numbers y(Dtype::kF32, {x.tensor().rows(), op.out});
  op.Run(ctx, x, StatelessBatch(std::vector<int32_t>(static_cast<size_t>(x.tensor().rows()))), y);
  return y;
}

// A sequence on its way through an op.
struct Course {
  Numbers x, y;  // all its rows, and their outputs in one stateless call
  int slot;
  int64_t done = 0;
  int64_t left() const { return x.tensor().rows() - done; }
};

// One call with the next rows[i] rows of each course, whose outputs must have the bits of the stateless call.
void Step(SequenceOp& op, Context& ctx, std::vector<Course>& courses, const std::vector<int64_t>& rows) {
  Batch batch;
  batch.tokens.resize(static_cast<size_t>(std::accumulate(rows.begin(), rows.end(), int64_t{0})));
  Numbers x(Dtype::kF32, {batch.rows(), op.in}), y(Dtype::kF32, {batch.rows(), op.out}, 3);
  Poison(x);
  int64_t row = 0;
  for (size_t i = 0; i < courses.size(); i++) {
    batch.sequences.push_back({.row = row, .rows = rows[i], .position = courses[i].done, .slot = courses[i].slot});
    for (int64_t t = 0; t < rows[i]; t++) std::copy_n(courses[i].x.tensor().Row<float>(courses[i].done + t), op.in, x.tensor().Row<float>(row + t));
    row += rows[i];
  }
  op.Run(ctx, x, batch, y);
  for (size_t i = 0; i < courses.size(); i++) {
    for (int64_t t = 0; t < rows[i]; t++)
      ASSERT_TRUE(SameBits(y.tensor().Row<float>(batch.sequences[i].row + t), courses[i].y.tensor().Row<float>(courses[i].done + t), op.out))
          << "sequence " << i << ", token " << courses[i].done + t << ", call of " << rows[i] << " rows at " << courses[i].done;
    courses[i].done += rows[i];
  }
}

struct Kind {
  const char* name;
  std::unique_ptr<SequenceOp> (*random)(Draws&);
};

class SplitTest : public testing::TestWithParam<Kind> {
 protected:
  static constexpr int kTrials = 150;
  static constexpr size_t kSpace = size_t{1} << 24;
  Device devices_[3] = {{TestedTable(), Dtype::kF32, 1, kSpace}, {TestedTable(), Dtype::kF32, 2, kSpace}, {TestedTable(), Dtype::kF32, 3, kSpace}};
  Context& AnyThreads(Draws& draws) { return devices_[draws.Int(0, 2)].ctx; }

  Course NewCourse(SequenceOp& op, Draws& draws, int64_t tokens, int slot) {
    Course course{Numbers(Dtype::kF32, {tokens, op.in}, op.Inputs(draws)), {}, slot};
    course.y = RunStateless(op, devices_[0].ctx, course.x);
    return course;
  }
  static int64_t Length(Draws& draws) { return draws.Int(0, 2) == 0 ? draws.Int(0, 3) : draws.Int(1, 200); }
  static int64_t Piece(Draws& draws, int64_t left) { return std::min(left, draws.Int(0, 1) ? draws.Int(0, 2) : draws.Int(0, 80)); }
};

// Random shapes, sequences, slots, splits, neighbours and threads; the state too.
TEST_P(SplitTest, SameBitsHoweverASequenceIsSplitAndBatched) {
  AtEverySimdLevel([&] {
    for (int trial = 0; trial < kTrials; trial++) {
      SCOPED_TRACE(testing::Message() << "trial " << trial);
      Draws draws(1000 + static_cast<uint64_t>(trial));
      const auto op = GetParam().random(draws);
      const int count = static_cast<int>(draws.Int(1, 4));
      std::vector<int> slots(6);
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), draws.random());
      std::vector<Course> courses;
      for (int i = 0; i < count; i++) courses.push_back(NewCourse(*op, draws, Length(draws), slots[static_cast<size_t>(i)]));

      op->MakeState(6, 260, draws);
      std::vector<std::vector<float>> whole;
      for (Course& course : courses) {
        std::vector<Course> alone = {course};
        Step(*op, AnyThreads(draws), alone, {course.left()});
        whole.push_back(op->Kept(course.slot, alone[0].done));
      }
      op->MakeState(6, 260, draws);
      while (std::any_of(courses.begin(), courses.end(), [](const Course& course) { return course.left() > 0; })) {
        std::vector<int64_t> rows;
        for (const Course& course : courses) rows.push_back(Piece(draws, course.left()));
        Step(*op, AnyThreads(draws), courses, rows);
        if (HasFatalFailure()) return;
      }
      for (int i = 0; i < count; i++) {
        const auto kept = op->Kept(courses[static_cast<size_t>(i)].slot, courses[static_cast<size_t>(i)].done);
        const auto& want = whole[static_cast<size_t>(i)];
        ASSERT_EQ(kept.size(), want.size());
        ASSERT_TRUE(SameBits(kept.data(), want.data(), static_cast<int64_t>(want.size()))) << "state of sequence " << i;
      }
    }
  });
}

// Going on from an earlier position with other tokens gives the bits of a sequence that never took the other way.
TEST_P(SplitTest, RollingBackIsChoosingASmallerPosition) {
  AtEverySimdLevel([&] {
    for (int trial = 0; trial < kTrials; trial++) {
      SCOPED_TRACE(testing::Message() << "trial " << trial);
      Draws draws(2000 + static_cast<uint64_t>(trial));
      const auto op = GetParam().random(draws);
      Context& ctx = AnyThreads(draws);
      std::vector<Course> courses = {NewCourse(*op, draws, draws.Int(1, 150), 1)};
      op->MakeState(2, 260, draws);
      while (courses[0].left() > 0) Step(*op, ctx, courses, {Piece(draws, courses[0].left())});

      const int64_t back = std::min({courses[0].done, op->Reach(), draws.Int(0, kSsdChunk)}), kept = courses[0].done - back;
      Course other = NewCourse(*op, draws, kept + 90, 1);
      for (int64_t t = 0; t < kept; t++) std::copy_n(courses[0].x.tensor().Row<float>(t), op->in, other.x.tensor().Row<float>(t));
      other.y = RunStateless(*op, ctx, other.x);
      other.done = kept;
      courses = {other};
      while (courses[0].left() > 0) Step(*op, ctx, courses, {Piece(draws, courses[0].left())});
      if (HasFatalFailure()) return;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ops, SplitTest,
                         testing::Values(Kind{"CausalConvSilu", ConvOp::Random}, Kind{"SsdScan", SsdOp::Random}, Kind{"Attention", AttentionOp::Random}),
                         [](const auto& info) { return info.param.name; });

// Two sequences in one call, the second without rows.
Batch Ragged(int64_t rows, int64_t first) {
  Batch batch;
  batch.tokens.resize(static_cast<size_t>(rows));
  batch.sequences = {{.row = 0, .rows = first}, {.row = first, .rows = 0}, {.row = first, .rows = rows - first}};
  return batch;
}

class SequenceOpsTest : public testing::Test {
 protected:
  Device cpu{TestedTable(), Dtype::kF32, 2, size_t{1} << 24}, ref{ref::kTable, Dtype::kF64, 1, 0};
  Draws draws{3};
};

TEST_F(SequenceOpsTest, ConvolutionIsWithinTheBound) {
  AtEverySimdLevel([&] {
    for (Dtype dtype : kWeightTypes)
      for (int64_t channels : {1, 7, 16, 64, 65, 130})
        for (int64_t d_conv : {1, 2, 3, 4, 5, 32, 33, 64})
          for (int64_t rows : {1, 2, 71}) {
            SCOPED_TRACE(testing::Message() << channels << " channels, " << d_conv << " taps, " << rows << " rows, " << Name(dtype));
            ConvOp op(draws, dtype, channels, d_conv, channels % 2 == 1, d_conv - 1);
            const Batch batch = Ragged(rows, rows / 3);
            const Numbers x(Dtype::kF32, {rows, channels}, draws.Normal(), 3);
            const auto abs = [](double v) { return std::abs(v); };
            Numbers y(Dtype::kF32, {rows, channels}, 2), exact(Dtype::kF64, {rows, channels}), magnitude = exact;
            op.Run(cpu.ctx, x, batch, y);
            const Numbers bias = op.bias_tensor ? op.bias.Double() : Numbers(), abs_bias = op.bias_tensor ? op.bias.Double(abs) : Numbers();
            ops::CausalConvSilu(ref.ctx, x.Double(), op.w.Double(), op.bias_tensor ? bias.tensor() : Tensor(), batch, {}, exact);
            // silu(v) ≥ v / 2 for v ≥ 0, so the same of absolute values gives at least half the magnitude.
            ops::CausalConvSilu(ref.ctx, x.Double(abs), op.w.Double(abs), op.bias_tensor ? abs_bias.tensor() : Tensor(), batch, {}, magnitude);
            for (int64_t i = 0; i < rows * channels; i++)
              ASSERT_NEAR(y.tensor().Row<float>(i / channels)[i % channels], exact.doubles()[i],
                          ConvBound(static_cast<double>(d_conv), 2 * magnitude.doubles()[i], std::abs(exact.doubles()[i])) + kTiny32)
                  << "element " << i;
          }
  });
}

TEST_F(SequenceOpsTest, AttentionIsWithinTheBound) {
  AtEverySimdLevel([&] {
    for (int64_t heads : {1, 2, 6})
      for (int64_t head_dim : {1, 5, 8, 64, 129})
        for (int64_t rows : {1, 2, 63, 64, 65, 200}) {
          const AttentionShape shape = {heads, heads == 6 ? 2 : heads == 2 ? 1 : 1, head_dim, 0.5};
          SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim << " over " << shape.kv_heads << ", " << rows << " rows");
          AttentionOp op(shape);
          const Batch batch = Ragged(rows, rows / 3);
          const Numbers x(Dtype::kF32, {rows, op.in}, draws.Normal());
          const Numbers xs = x.Double();
          Numbers y(Dtype::kF32, {rows, op.out}, 1), exact(Dtype::kF64, {rows, op.out});
          op.Run(cpu.ctx, x, batch, y);
          op.Run(ref.ctx, xs, batch, exact);
          double longest = 0, value = 0;  // of any head's q and k
          const int64_t v = (heads + shape.kv_heads) * head_dim;
          for (int64_t t = 0; t < rows; t++) {
            const double* row = xs.tensor().Row<double>(t);
            for (int64_t h = 0; h < v; h += head_dim) {
              double sum = 0;
              for (int64_t i = 0; i < head_dim; i++) sum += row[h + i] * row[h + i];
              longest = std::max(longest, sum);
            }
            for (int64_t i = v; i < op.in; i++) value = std::max(value, std::abs(row[i]));
          }
          const double dot = shape.scale * longest, blocks = std::ceil(static_cast<double>(rows) / kKvBlock);
          const double bound = AttentionBound(static_cast<double>(head_dim), dot, dot, blocks, value);
          for (int64_t i = 0; i < rows * op.out; i++) ASSERT_NEAR(y.tensor().Row<float>(i / op.out)[i % op.out], exact.doubles()[i], bound) << "element " << i;
        }
  });
}

// Runs the scan in f32 and in double, and checks the bound. `raw`: draw of the time steps before bias and softplus.
void ExpectScanWithinBound(Device& cpu, Device& ref, SsdOp& op, const Batch& batch, const std::function<double()>& xbc, const std::function<double()>& raw) {
  const int64_t rows = batch.rows(), heads = op.shape.heads, conv_dim = op.shape.conv_dim();
  Numbers x(Dtype::kF32, {rows, op.in}, xbc);
  double largest_raw = 0;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t h = 0; h < heads; h++) {
      float& dt = x.tensor().Row<float>(t)[conv_dim + h];
      dt = static_cast<float>(raw());
      largest_raw = std::max(largest_raw, std::abs(static_cast<double>(dt)) + 5);
    }
  Numbers magnitudes = x.Double();
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < conv_dim; i++) magnitudes.tensor().Row<double>(t)[i] = std::abs(magnitudes.tensor().Row<double>(t)[i]);

  Numbers y(Dtype::kF32, {rows, op.out}, 2), exact(Dtype::kF64, {rows, op.out}), magnitude = exact, undecayed = exact;
  op.Run(cpu.ctx, x, batch, y);
  op.Run(ref.ctx, x.Double(), batch, exact);
  op.Run(ref.ctx, magnitudes, batch, magnitude);
  op.a_log = Numbers(Dtype::kF32, {heads}, [] { return -100; });
  op.Run(ref.ctx, magnitudes, batch, undecayed);
  const double chunks = std::ceil(static_cast<double>(rows) / kSsdChunk);
  for (int64_t i = 0; i < rows * op.out; i++) {
    const double got = y.tensor().Row<float>(i / op.out)[i % op.out];
    ASSERT_TRUE(std::isfinite(got)) << "element " << i;
    ASSERT_NEAR(got, exact.doubles()[i], ScanBound(largest_raw, chunks, static_cast<double>(op.shape.state), magnitude.doubles()[i], undecayed.doubles()[i]))
        << "element " << i;
  }
}

TEST_F(SequenceOpsTest, ScanIsWithinTheBound) {
  AtEverySimdLevel([&] {
    for (Dtype dtype : kWeightTypes)
      for (const auto& [head_dim, state] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {16, 24}, {64, 128}, {33, 17}, {70, 300}})
        for (int64_t rows : {1, 2, 32, 33, 100}) {
          SCOPED_TRACE(testing::Message() << "heads of " << head_dim << " by " << state << ", " << rows << " rows, " << Name(dtype));
          SsdOp op(draws, dtype, {4, head_dim, state, 2, 0.001, 0.1});
          ExpectScanWithinBound(cpu, ref, op, Ragged(rows, rows / 3), draws.Normal(), draws.Normal());
        }
  });
}

// Steps from nothing to far beyond any decay, in one chunk: no overflow, no NaN, and what follows a huge step keeps its digits.
TEST_F(SequenceOpsTest, ScanOfExtremeSteps) {
  const auto extreme = [&] { return std::vector<double>{-1e4, -100, 0, 1, 30, 1e4}[static_cast<size_t>(draws.Int(0, 5))]; };
  AtEverySimdLevel([&] {
    for (double dt_max : {0.1, 1.0, std::numeric_limits<double>::infinity()})
      for (int64_t rows : {1, 31, 32, 90}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, dt at most " << dt_max);
        SsdOp op(draws, Dtype::kF32, {3, 9, 11, 1, 0, dt_max});
        ExpectScanWithinBound(cpu, ref, op, Ragged(rows, rows / 3), draws.Normal(), extreme);
      }
  });
}

// The canonical order must not cost accuracy: the plain recurrence in f32 is the measure, both against double.
TEST_F(SequenceOpsTest, ScanErrsNoMoreThanTwiceThePlainRecurrence) {
  AtEverySimdLevel([&] {
    const SsdShape shape = {4, 32, 64, 1, 0, std::numeric_limits<double>::infinity()};
    SsdOp op(draws, Dtype::kF32, shape);
    const int64_t rows = 300;
    const Numbers x(Dtype::kF32, {rows, op.in}, draws.Normal());
    const Batch batch = StatelessBatch(std::vector<int32_t>(rows));
    Numbers y(Dtype::kF32, {rows, op.out}), exact(Dtype::kF64, {rows, op.out});
    op.Run(cpu.ctx, x, batch, y);
    op.Run(ref.ctx, x.Double(), batch, exact);
    double error = 0, plain_error = 0;
    for (int64_t h = 0; h < shape.heads; h++) {
      std::vector<float> s(static_cast<size_t>(shape.head_dim * shape.state));
      for (int64_t t = 0; t < rows; t++) {
        const float* row = x.tensor().Row<float>(t);
        const float *b = row + shape.inner(), *c = b + shape.state;
        const float dt = std::log1p(std::exp(row[shape.conv_dim() + h] + op.dt_bias.floats()[h])), decay = std::exp(-dt * std::exp(op.a_log.floats()[h]));
        for (int64_t p = 0; p < shape.head_dim; p++) {
          const int64_t i = h * shape.head_dim + p;
          float plain = op.d.floats()[h] * row[i];
          for (int64_t n = 0; n < shape.state; n++) {
            float& state = s[static_cast<size_t>(p * shape.state + n)];
            state = decay * state + dt * row[i] * b[n];
            plain += state * c[n];
          }
          const double want = exact.tensor().Row<double>(t)[i];
          plain_error += std::pow(plain - want, 2), error += std::pow(y.tensor().Row<float>(t)[i] - want, 2);
        }
      }
    }
    EXPECT_LE(std::sqrt(error), 2 * std::sqrt(plain_error));
    RecordProperty("error_relative_to_plain", std::to_string(std::sqrt(error / plain_error)));
  });
}

TEST_F(SequenceOpsTest, ASlotWithoutAStateIsAFault) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // there are threads
  ConvOp conv(draws, Dtype::kF32, 4, 3, false, 2);
  SsdOp scan(draws, Dtype::kF32, {2, 3, 5, 1, 0, 1});
  for (SequenceOp* op : {static_cast<SequenceOp*>(&conv), static_cast<SequenceOp*>(&scan)}) {
    const Numbers x(Dtype::kF32, {1, op->in}, draws.Normal()), y(Dtype::kF32, {1, op->out});
    Batch batch = StatelessBatch({0});
    batch.sequences[0].slot = 0;
    for (const int64_t position : {0, 5}) {
      batch.sequences[0].position = position;
      EXPECT_DEATH(op->Run(cpu.ctx, x, batch, y), "in slot 0, but there is no state");
    }
  }
}

}  // namespace
}  // namespace bamba
