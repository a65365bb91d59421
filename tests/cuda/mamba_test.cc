// Norms, convolution and scan on the GPU: against the reference in double, and the same bits for any split where they are promised.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/gpu.h"
#include "tests/support/numbers.h"

namespace bamba {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kSpace = size_t{1} << 28;

double NaN() { return std::numeric_limits<double>::quiet_NaN(); }
double RoundTo(Dtype dtype, double v) {
  double rounded;
  char bytes[8];
  Convert(&v, Dtype::kF64, bytes, dtype, 1);
  Convert(bytes, dtype, &rounded, Dtype::kF64, 1);
  return rounded;
}
double Rms(const std::vector<double>& v) {
  double sum = 0;
  for (double e : v) sum += e * e;
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(1, v.size())));
}
std::vector<double> Difference(const double* a, const double* b, int64_t n) {
  std::vector<double> out(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) out[static_cast<size_t>(i)] = a[i] - b[i];
  return out;
}
std::vector<double> FromFloats(const float* v, int64_t n) { return std::vector<double>(v, v + n); }

// The error of bf16 numbers is at most twice that of the naive computation, both over all of them.
void ExpectLikeNaive(const Numbers& got, const Numbers& exact, const std::vector<double>& naive) {
  const int64_t n = exact.tensor().size();
  const Numbers doubles = got.Double();
  const double error = Rms(Difference(doubles.doubles(), exact.doubles(), n)), measure = Rms(Difference(naive.data(), exact.doubles(), n));
  EXPECT_TRUE(std::isfinite(error));
  EXPECT_LE(error, 2 * measure + 1e-30);
}

// On the device: weights and states in `home`, what a call needs in `gpu`.
class CudaMambaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  }
  // Rows on the device, `gap` numbers between them.
  static Tensor Wide(Gpu& gpu, const Numbers& n, int64_t gap) {
    const Tensor t = n;
    Numbers wide(t.dtype(), {t.rows(), t.cols() + gap}, NaN);
    for (int64_t i = 0; i < t.rows(); i++) std::memcpy(wide.tensor().At(i).data(), t.At(i).data(), static_cast<size_t>(t.cols()) * SizeOf(t.dtype()));
    return gpu.Upload(wide).Columns({0, t.cols()});
  }
  static Numbers Poisoned(Dtype dtype, std::vector<int64_t> shape) { return Numbers(dtype, std::move(shape), NaN); }
};

TEST_F(CudaMambaTest, Norms) {
  Device ref(ref::kTable, Dtype::kF64, 1, 0);
  Draws draws(1);
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    Gpu gpu(dtype, kSpace);
    for (int64_t n : {1, 7, 8, 100, 256, 513, 4096, 8192, 9000, 20000})
      for (int64_t rows : {1, 3}) {
        const int64_t gap = n % 3 == 0 ? 3 : 8;
        SCOPED_TRACE(testing::Message() << n << " columns, " << rows << " rows, " << Name(dtype));
        gpu.FreeTemporaries();
        const Numbers x(Dtype::kF32, {rows, n}, draws.Normal()), w(Dtype::kF32, {n}, draws.Normal()), y(dtype, {rows, n}, draws.Normal()),
            z(dtype, {rows, n}, draws.Normal(3));
        const Tensor dx = Wide(gpu, x, gap), dw = gpu.Upload(w), dy = Wide(gpu, y, gap), dz = Wide(gpu, z, gap);
        const auto check = [&](const Tensor& to, const Numbers& exact, double input) {
          Numbers got(dtype, {rows, n});
          Gpu::Download(to, got);
          if (dtype == Dtype::kF32) {
            for (int64_t i = 0; i < rows * n; i++)
              ASSERT_NEAR(got.floats()[i], exact.doubles()[i], NormError(static_cast<double>(n), input) * std::abs(exact.doubles()[i]) + kTiny32) << i;
          } else {
            std::vector<double> naive;
            for (int64_t i = 0; i < rows * n; i++) naive.push_back(RoundTo(dtype, exact.doubles()[i]));
            ExpectLikeNaive(got, exact, naive);
          }
        };
        Numbers exact(Dtype::kF64, {rows, n}), sum = exact;
        Tensor to = Wide(gpu, Poisoned(dtype, {rows, n}), gap);
        ops::RmsNorm(gpu.ctx, dx, dw, 1e-5, to);
        ops::RmsNorm(ref.ctx, x.Double(), w.Double(), 1e-5, exact);
        check(to, exact, 0);

        to = Wide(gpu, Poisoned(dtype, {rows, n}), gap);
        ops::AddRmsNorm(gpu.ctx, dx, dy, 0.5, dw, 1e-5, dx, to);  // in place
        ops::AddRmsNorm(ref.ctx, x.Double(), y.Double(), 0.5, w.Double(), 1e-5, sum, exact);
        Numbers got_sum(Dtype::kF32, {rows, n});
        Gpu::Download(dx, got_sum);
        Numbers rounded = got_sum.Double();
        for (int64_t i = 0; i < rows * n; i++) ASSERT_NEAR(got_sum.floats()[i], sum.doubles()[i], kEps32 * std::abs(sum.doubles()[i])) << i;
        ops::RmsNorm(ref.ctx, rounded, w.Double(), 1e-5, exact);
        check(to, exact, 0);

        for (int64_t groups : {1, 2, 4}) {
          if (n % groups != 0) continue;
          to = Wide(gpu, Poisoned(dtype, {rows, n}), gap);
          ops::GatedRmsNorm(gpu.ctx, dy, dz, dw, groups, 1e-5, to);
          ops::GatedRmsNorm(ref.ctx, y.Double(), z.Double(), w.Double(), groups, 1e-5, exact);
          check(to, exact, kSiluError + kEps32);
        }
      }
  }
}

// An op along sequences, with its weights and the state of some slots on the device.
class Subject {
 public:
  virtual ~Subject() = default;
  Dtype dtype = Dtype::kF32;
  int64_t in = 0, out = 0;
  virtual void MakeState(int slots) = 0;                                                         // full of NaN
  virtual void Run(Context& ctx, const Tensor& x, const Batch& batch, const Tensor& y) = 0;      // on the device
  virtual void RunRef(Context& ctx, const Numbers& x, const Batch& batch, const Tensor& y) = 0;  // in double, stateless
  virtual std::vector<Numbers> Inputs(int slot, int64_t tokens) = 0;                             // kept in the slot's rings
  virtual Numbers States(int /*slot*/, int64_t /*tokens*/) { return Numbers(Dtype::kF32, {0}); }
  virtual Numbers Draw(Draws& draws, int64_t tokens) { return Numbers(dtype, {tokens, in}, draws.Normal()); }
  virtual std::vector<double> Naive(const Numbers& x) = 0;  // of one sequence
};

// Entries of a slot's ring on the device.
Numbers RingRows(const Tensor& ring, int slot, int64_t begin, int64_t end) {
  const int64_t columns = ring.shape(2);
  Numbers rows(ring.dtype(), {end - begin, columns});
  for (int64_t t = begin; t < end; t++)
    Gpu::Here()->Download(rows.tensor().At(t - begin).data(), ring.At(slot).At(t % ring.shape(1)).data(), static_cast<size_t>(columns) * SizeOf(ring.dtype()));
  return rows;
}

class ConvSubject : public Subject {
 public:
  ConvSubject(Dtype type, Draws& draws, int64_t channels, int64_t d_conv, bool with_bias, int64_t ring)
      : home_(type, size_t{1} << 26), w_(Dtype::kF32, {channels, 1, d_conv}, draws.Normal()), ring_(ring) {
    dtype = type, in = out = channels;
    if (with_bias) bias_ = Numbers(Dtype::kF32, {channels}, draws.Normal());
    device_w_ = home_.Upload(w_), device_bias_ = home_.Upload(bias_);
  }
  void MakeState(int slots) override {
    if (ring_ > 0) conv_ = home_.Upload(Numbers(dtype, {slots, ring_, in}, NaN));
  }
  void Run(Context& ctx, const Tensor& x, const Batch& batch, const Tensor& y) override {
    ops::CausalConvSilu(ctx, x, device_w_, device_bias_, batch, {.conv = conv_}, y);
  }
  void RunRef(Context& ctx, const Numbers& x, const Batch& batch, const Tensor& y) override {
    const Numbers bias = bias_.tensor() ? bias_.Double() : Numbers();
    ops::CausalConvSilu(ctx, x.Double(), w_.Double(), bias, batch, {}, y);
  }
  std::vector<Numbers> Inputs(int slot, int64_t tokens) override {
    std::vector<Numbers> kept;
    if (ring_ > 0) kept.push_back(RingRows(conv_, slot, std::max<int64_t>(0, tokens - ring_), tokens));
    return kept;
  }
  std::vector<double> Naive(const Numbers& x) override {
    const Numbers xs = x.Double();
    const int64_t rows = x.tensor().rows(), d_conv = w_.tensor().shape(2);
    std::vector<double> y;
    for (int64_t t = 0; t < rows; t++)
      for (int64_t c = 0; c < in; c++) {
        float sum = bias_.tensor() ? bias_.floats()[c] : 0;
        for (int64_t k = 0; k < d_conv; k++)
          if (t - d_conv + 1 + k >= 0) sum += w_.floats()[c * d_conv + k] * static_cast<float>(xs.doubles()[(t - d_conv + 1 + k) * in + c]);
        y.push_back(RoundTo(dtype, sum / (1 + std::exp(-sum))));
      }
    return y;
  }

 private:
  Gpu home_;
  Numbers w_, bias_;
  Tensor device_w_, device_bias_, conv_;
  int64_t ring_;
};

class ScanSubject : public Subject {
 public:
  ScanSubject(Dtype type, Draws& draws, const SsdShape& shape, int64_t ring = kSsdChunk, int64_t boundaries = 1)
      : home_(type, size_t{1} << 28),
        shape_(shape),
        dt_bias_(Dtype::kF32, {shape.heads}, draws.Uniform(-5, -1)),
        a_log_(Dtype::kF32, {shape.heads}, draws.Uniform(0, 2.7)),
        d_(Dtype::kF32, {shape.heads}, draws.Uniform(0.5, 1.5)),
        ring_(ring),
        boundaries_(boundaries) {
    dtype = type, in = shape.conv_dim() + shape.heads, out = shape.inner();
    device_dt_bias_ = home_.Upload(dt_bias_), device_a_log_ = home_.Upload(a_log_), device_d_ = home_.Upload(d_);
    mark_ = home_.ctx.workspace->used();
  }
  void MakeState(int slots) override {
    home_.ctx.workspace->ReleaseTo(mark_);
    state_.xbc = home_.Upload(Numbers(dtype, {slots, ring_, shape_.conv_dim()}, NaN)),
    state_.dt = home_.Upload(Numbers(dtype, {slots, ring_, shape_.heads}, NaN));
    state_.ssm = home_.Upload(Numbers(Dtype::kF32, {slots, boundaries_, shape_.heads, shape_.head_dim, shape_.state}, NaN));
  }
  void Run(Context& ctx, const Tensor& x, const Batch& batch, const Tensor& y) override {
    ops::SsdScan(ctx, x.Columns({0, shape_.conv_dim()}), x.Columns({shape_.conv_dim(), shape_.heads}), device_dt_bias_, device_a_log_, device_d_, shape_, batch,
                 state_, y);
  }
  void RunRef(Context& ctx, const Numbers& x, const Batch& batch, const Tensor& y) override {
    const Numbers xs = x.Double();
    ops::SsdScan(ctx, xs.tensor().Columns({0, shape_.conv_dim()}), xs.tensor().Columns({shape_.conv_dim(), shape_.heads}), dt_bias_.Double(), a_log_.Double(),
                 d_.Double(), shape_, batch, {}, y);
  }
  std::vector<Numbers> Inputs(int slot, int64_t tokens) override {
    std::vector<Numbers> kept;
    for (const Tensor* ring : {&state_.xbc, &state_.dt}) kept.push_back(RingRows(*ring, slot, std::max<int64_t>(0, tokens - ring_), tokens));
    return kept;
  }
  Numbers States(int slot, int64_t tokens) override {
    const int64_t last = tokens / kSsdChunk, first = std::max<int64_t>(1, last - boundaries_ + 1), size = shape_.inner() * shape_.state;
    Numbers kept(Dtype::kF32, {std::max<int64_t>(0, last - first + 1), size});
    for (int64_t chunk = first; chunk <= last; chunk++)
      Gpu::Here()->Download(kept.tensor().At(chunk - first).data(), state_.ssm.At(slot).At(chunk % boundaries_).data(),
                            static_cast<size_t>(size) * sizeof(float));
    return kept;
  }
  // The recurrence in f32, its output rounded.
  std::vector<double> Naive(const Numbers& x) override {
    const Numbers xs = x.Double();
    const int64_t rows = x.tensor().rows();
    std::vector<double> y(static_cast<size_t>(rows * out));
    for (int64_t h = 0; h < shape_.heads; h++) {
      const int64_t b0 = shape_.inner() + h / (shape_.heads / shape_.groups) * shape_.state, c0 = b0 + shape_.groups * shape_.state;
      std::vector<float> s(static_cast<size_t>(shape_.head_dim * shape_.state));
      for (int64_t t = 0; t < rows; t++) {
        const double* row = xs.doubles() + t * in;
        const float raw = static_cast<float>(row[shape_.conv_dim() + h]) + dt_bias_.floats()[h];
        const float step = std::clamp(raw > 20 ? raw : std::log1p(std::exp(raw)), static_cast<float>(shape_.dt_min), static_cast<float>(shape_.dt_max));
        const float decay = std::exp(-step * std::exp(a_log_.floats()[h]));
        for (int64_t p = 0; p < shape_.head_dim; p++) {
          const float xp = static_cast<float>(row[h * shape_.head_dim + p]);
          float sum = 0;
          for (int64_t n = 0; n < shape_.state; n++) {
            float& v = s[static_cast<size_t>(p * shape_.state + n)];
            v = decay * v + step * xp * static_cast<float>(row[b0 + n]);
            sum += v * static_cast<float>(row[c0 + n]);
          }
          y[static_cast<size_t>(t * out + h * shape_.head_dim + p)] = RoundTo(dtype, sum + d_.floats()[h] * xp);
        }
      }
    }
    return y;
  }

 protected:
  Gpu home_;
  SsdShape shape_;
  Numbers dt_bias_, a_log_, d_;
  Tensor device_dt_bias_, device_a_log_, device_d_;
  MambaState state_;
  int64_t ring_, boundaries_;
  size_t mark_ = 0;
};

// With the convolution ahead of it.
class ConvScanSubject : public ScanSubject {
 public:
  ConvScanSubject(Draws& draws, const SsdShape& shape, bool with_bias, int64_t conv_ring, int64_t ring, int64_t boundaries)
      : ScanSubject(Dtype::kBf16, draws, shape, ring, boundaries), w_(Dtype::kF32, {shape.conv_dim(), 1, 4}, draws.Normal()), conv_ring_(conv_ring) {
    if (with_bias) bias_ = Numbers(Dtype::kF32, {shape.conv_dim()}, draws.Normal());
    device_w_ = home_.Upload(w_), device_bias_ = home_.Upload(bias_);
    mark_ = home_.ctx.workspace->used();
  }
  void MakeState(int slots) override {
    ScanSubject::MakeState(slots);
    state_.conv = home_.Upload(Numbers(dtype, {slots, conv_ring_, shape_.conv_dim()}, NaN));
  }
  void Run(Context& ctx, const Tensor& x, const Batch& batch, const Tensor& y) override {
    ops::ConvScan(ctx, x.Columns({0, shape_.conv_dim()}), device_w_, device_bias_, x.Columns({shape_.conv_dim(), shape_.heads}), device_dt_bias_, device_a_log_,
                  device_d_, shape_, batch, state_, ctx.Temp({batch.rows(), shape_.conv_dim()}), y);
  }
  void RunRef(Context& ctx, const Numbers& x, const Batch& batch, const Tensor& y) override {
    const Numbers xs = x.Double(), bias = bias_.tensor() ? bias_.Double() : Numbers(), xbc(Dtype::kF64, {batch.rows(), shape_.conv_dim()});
    ops::ConvScan(ctx, xs.tensor().Columns({0, shape_.conv_dim()}), w_.Double(), bias, xs.tensor().Columns({shape_.conv_dim(), shape_.heads}),
                  dt_bias_.Double(), a_log_.Double(), d_.Double(), shape_, batch, {}, xbc, y);
  }
  std::vector<Numbers> Inputs(int slot, int64_t tokens) override {
    std::vector<Numbers> kept = ScanSubject::Inputs(slot, tokens);
    kept.push_back(RingRows(state_.conv, slot, std::max<int64_t>(0, tokens - conv_ring_), tokens));
    return kept;
  }
  std::vector<double> Naive(const Numbers& x) override {
    Numbers after = x.Double();
    double* const to = after.doubles();
    const std::vector<double> before(to, to + after.tensor().size());
    for (int64_t t = 0; t < x.tensor().rows(); t++)
      for (int64_t c = 0; c < shape_.conv_dim(); c++) {
        float sum = bias_.tensor() ? bias_.floats()[c] : 0;
        for (int64_t k = std::max<int64_t>(0, 3 - t); k < 4; k++)
          sum += w_.floats()[c * 4 + k] * static_cast<float>(before[static_cast<size_t>((t - 3 + k) * in + c)]);
        to[t * in + c] = RoundTo(dtype, sum / (1 + std::exp(-sum)));
      }
    return ScanSubject::Naive(after);
  }

 private:
  Numbers w_, bias_;
  Tensor device_w_, device_bias_;
  int64_t conv_ring_;
};

bool SameBits(const Numbers& a, const Numbers& b) {
  const Tensor s = a, t = b;
  return s.bytes() == t.bytes() && (s.bytes() == 0 || std::memcmp(s.data(), t.data(), s.bytes()) == 0);
}

// A sequence on its way through an op.
struct Course {
  Numbers x, whole, y;  // its inputs; outputs in one stateless call; and in pieces
  int slot;
  int64_t done = 0;
  int64_t left() const { return x.tensor().rows() - done; }
};

class CudaSequencesTest : public CudaMambaTest {
 protected:
  // One call with the next rows[i] rows of each course, and some padding.
  static void Step(Subject& op, Gpu& gpu, std::vector<Course>& courses, const std::vector<int64_t>& rows, int64_t padding, int64_t gap) {
    Batch batch;
    batch.tokens.resize(static_cast<size_t>(std::accumulate(rows.begin(), rows.end(), padding)));
    if (batch.rows() == 0) return;
    Numbers x(op.dtype, {batch.rows(), op.in}, [] { return 0.5; });
    const auto copy = [](const Tensor& from, int64_t i, const Tensor& to, int64_t j) {
      std::memcpy(to.At(j).data(), from.At(i).data(), static_cast<size_t>(from.cols()) * SizeOf(from.dtype()));
    };
    int64_t row = 0;
    for (size_t i = 0; i < courses.size(); i++) {
      batch.sequences.push_back({.row = row, .rows = rows[i], .position = courses[i].done, .slot = courses[i].slot});
      for (int64_t t = 0; t < rows[i]; t++) copy(courses[i].x, courses[i].done + t, x, row + t);
      row += rows[i];
    }
    for (int64_t i = 0; i < padding; i++) batch.sequences.push_back({.row = row++, .rows = 1});
    gpu.FreeTemporaries();
    const Tensor device_x = Wide(gpu, x, gap), device_y = Wide(gpu, Poisoned(op.dtype, {batch.rows(), op.out}), gap);
    ops::Begin(gpu.ctx, batch);
    op.Run(gpu.ctx, device_x, batch, device_y);
    Numbers y(op.dtype, {batch.rows(), op.out});
    Gpu::Download(device_y, y);
    for (size_t i = 0; i < courses.size(); i++) {
      for (int64_t t = 0; t < rows[i]; t++) copy(y, batch.sequences[i].row + t, courses[i].y, courses[i].done + t);
      courses[i].done += rows[i];
    }
  }

  static Course NewCourse(Subject& op, Gpu& gpu, Draws& draws, int64_t tokens, int slot, int64_t gap) {
    Course course{op.Draw(draws, tokens), Numbers(op.dtype, {tokens, op.out}), Numbers(op.dtype, {tokens, op.out}), slot};
    std::vector<Course> alone = {course};
    alone[0].slot = -1;
    Step(op, gpu, alone, {tokens}, 0, gap);
    course.whole = alone[0].y;
    return course;
  }

  // Outputs of one stateless call are right, and those of pieces have their bits; so with what the slots hold at the end.
  static void Try(Subject& op, Gpu& gpu, Draws& draws, int64_t longest, int64_t gap, int sequences = 4) {
    Device ref(ref::kTable, Dtype::kF64, 1, 0);
    const int slot_count = sequences + 2;
    std::vector<int> slots(static_cast<size_t>(slot_count));
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), draws.random());
    std::vector<Course> courses;
    for (int i = 0; i < sequences; i++) courses.push_back(NewCourse(op, gpu, draws, i == 0 ? longest : draws.Int(0, longest), slots[static_cast<size_t>(i)], gap));
    op.MakeState(slot_count);
    std::vector<std::vector<Numbers>> inputs;
    std::vector<Numbers> states;
    for (Course& course : courses) {
      std::vector<Course> alone = {course};
      Step(op, gpu, alone, {course.left()}, 0, gap);
      EXPECT_TRUE(SameBits(alone[0].y, course.whole)) << "with a slot and without";
      inputs.push_back(op.Inputs(course.slot, alone[0].done)), states.push_back(op.States(course.slot, alone[0].done));
    }
    op.MakeState(slot_count);
    for (int call = 0; std::any_of(courses.begin(), courses.end(), [](const Course& course) { return course.left() > 0; }); call++) {
      std::vector<int64_t> rows;
      const int64_t kind = draws.Int(0, 3);  // decoding, or pieces
      for (const Course& course : courses)
        rows.push_back(std::min(course.left(), kind == 0 ? 1 : draws.Int(0, 1) ? draws.Int(0, 2) : draws.Int(0, std::max<int64_t>(80, longest / 8))));
      for (int repeat = 0; repeat < (kind == 0 ? (Gpu::Short() ? 5 : 40) : 1); repeat++) {
        for (size_t i = 0; i < rows.size(); i++) rows[i] = std::min(rows[i], courses[i].left());
        Step(op, gpu, courses, rows, draws.Int(0, 2), gap);
      }
    }
    for (size_t i = 0; i < courses.size(); i++) {
      SCOPED_TRACE(testing::Message() << "sequence " << i << " of " << courses[i].done);
      const Course& course = courses[i];
      const int64_t tokens = course.done;
      if (tokens == 0) continue;
      Numbers exact(Dtype::kF64, {tokens, op.out});
      op.RunRef(ref.ctx, course.x, StatelessBatch(std::vector<int32_t>(static_cast<size_t>(tokens))), exact);
      if (op.dtype == Dtype::kBf16) {
        const std::vector<double> naive = op.Naive(course.x);
        ExpectLikeNaive(course.whole, exact, naive);
      } else {
        const std::vector<double> got = FromFloats(course.whole.floats(), exact.tensor().size()), naive = op.Naive(course.x);
        EXPECT_LE(Rms(Difference(got.data(), exact.doubles(), exact.tensor().size())),
                  2 * Rms(Difference(naive.data(), exact.doubles(), exact.tensor().size())) + 1e-30);
      }
      EXPECT_TRUE(SameBits(course.whole, course.y)) << FirstDifference(course.whole, course.y);
      const std::vector<Numbers> kept = op.Inputs(course.slot, tokens);
      for (size_t k = 0; k < kept.size(); k++) EXPECT_TRUE(SameBits(kept[k], inputs[i][k])) << "ring " << k;
      EXPECT_TRUE(SameBits(op.States(course.slot, tokens), states[i])) << "state";
    }
  }

  static std::string FirstDifference(const Numbers& a, const Numbers& b) {
    const Numbers x = a.Double(), y = b.Double();
    for (int64_t i = 0; i < x.tensor().size(); i++)
      if (x.doubles()[i] != y.doubles()[i] && !(std::isnan(x.doubles()[i]) && std::isnan(y.doubles()[i])))
        return "row " + std::to_string(i / a.tensor().cols()) + ", column " + std::to_string(i % a.tensor().cols()) + ": " + std::to_string(x.doubles()[i]) +
               " and " + std::to_string(y.doubles()[i]);
    return "signs of zeros";
  }
};

TEST_F(CudaSequencesTest, Convolution) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    Gpu gpu(dtype, kSpace);
    for (int trial = 0; trial < (Gpu::Short() ? 3 : 24); trial++) {
      Draws draws(100 + static_cast<uint64_t>(trial));
      const bool fast = trial % 2 == 0;
      const int64_t d_conv = fast ? 4 : draws.Int(1, trial % 3 ? 6 : 64), channels = fast ? 8 * draws.Int(1, 150) : draws.Int(1, 150);
      SCOPED_TRACE(testing::Message() << "trial " << trial << ", " << channels << " channels, " << d_conv << " taps, " << Name(dtype));
      ConvSubject op(dtype, draws, channels, d_conv, draws.Int(0, 1), d_conv - 1 + (draws.Int(0, 1) ? draws.Int(0, 40) : 0));
      Try(op, gpu, draws, Gpu::Short() ? 150 : 300, fast ? 8 : 3);
    }
  }
}

TEST_F(CudaSequencesTest, ScanOfAnyShape) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    Gpu gpu(dtype, kSpace);
    for (int trial = 0; trial < (Gpu::Short() ? 3 : 10); trial++) {
      Draws draws(200 + static_cast<uint64_t>(trial));
      SsdShape shape = {.head_dim = draws.Int(1, 40), .state = draws.Int(1, 40), .groups = draws.Int(1, 3)};
      if (trial == 0) shape.head_dim = 70, shape.state = 300;  // more than one slice
      if (trial == 1) shape.head_dim = 5, shape.state = 700;   // B and C don't fit
      if (trial == 2) shape.head_dim = 64, shape.state = 128;
      shape.heads = shape.groups * draws.Int(1, 3);
      shape.dt_max = draws.Int(0, 1) ? 0.5 : kInfinity;
      const int64_t boundaries = draws.Int(1, 3);
      SCOPED_TRACE(testing::Message() << "trial " << trial << ", heads of " << shape.head_dim << " by " << shape.state << ", " << Name(dtype));
      ScanSubject op(dtype, draws, shape, kSsdChunk * (boundaries + draws.Int(0, 1)), boundaries);
      Try(op, gpu, draws, Gpu::Short() ? 70 : 150, 3);
    }
  }
}

// Heads of 64 by 128: the kernels for bf16, one and two heads a block.
TEST_F(CudaSequencesTest, ScanOnTensorCores) {
  Gpu gpu(Dtype::kBf16, kSpace);
  for (int trial = 0; trial < (Gpu::Short() ? 1 : 5); trial++) {
    Draws draws(300 + static_cast<uint64_t>(trial));
    SsdShape shape = {.head_dim = 64, .state = 128, .groups = draws.Int(1, 2)};
    shape.heads = trial % 4 == 3 ? 128 : 8 * draws.Int(1, 2);
    shape.dt_max = draws.Int(0, 1) ? 0.5 : kInfinity;
    const int64_t boundaries = draws.Int(1, 3);
    SCOPED_TRACE(testing::Message() << "trial " << trial << ", " << shape.heads << " heads");
    ScanSubject op(Dtype::kBf16, draws, shape, kSsdChunk * (boundaries + draws.Int(0, 1)), boundaries);
    Try(op, gpu, draws, trial % 4 == 3 || Gpu::Short() ? 70 : 300, (8 - op.in % 8) % 8 + 8);
  }
}

// Single rows take convolution and scan in one kernel, prompts in two. Many heads and sequences: several heads a block.
TEST_F(CudaSequencesTest, ConvScan) {
  Gpu gpu(Dtype::kBf16, kSpace);
  for (int trial = 0; trial < (Gpu::Short() ? 2 : 7); trial++) {
    Draws draws(350 + static_cast<uint64_t>(trial));
    SsdShape shape = {.heads = trial == 5 ? 128 : trial == 6 ? 32 : 8, .head_dim = 64, .state = 128, .groups = draws.Int(1, 2), .dt_max = kInfinity};
    const int64_t boundaries = draws.Int(1, 2), conv_ring = trial == 0 ? 3 : draws.Int(4, 40);
    SCOPED_TRACE(testing::Message() << "trial " << trial << ", " << shape.heads << " heads, convolution's ring of " << conv_ring);
    ConvScanSubject op(draws, shape, draws.Int(0, 1), conv_ring, kSsdChunk * (boundaries + draws.Int(0, 1)), boundaries);
    Try(op, gpu, draws, trial >= 5 || Gpu::Short() ? 70 : 300, (8 - op.in % 8) % 8 + 8, trial == 6 ? 24 : 4);
  }
}

// Steps from nothing to far beyond any decay: finite, and what follows a huge step keeps its digits.
TEST_F(CudaSequencesTest, ScanOfExtremeSteps) {
  class Extreme : public ScanSubject {
   public:
    using ScanSubject::ScanSubject;
    Numbers Draw(Draws& draws, int64_t tokens) override {
      Numbers x = ScanSubject::Draw(draws, tokens);
      const Numbers steps(dtype, {tokens, heads}, [&] { return std::vector<double>{-1e4, -100, 0, 1, 30, 1e4}[static_cast<size_t>(draws.Int(0, 5))]; });
      for (int64_t t = 0; t < tokens; t++) {
        const size_t bytes = static_cast<size_t>(heads) * SizeOf(dtype), row = static_cast<size_t>(in) * SizeOf(dtype);
        std::memcpy(static_cast<char*>(x.tensor().At(t).data()) + row - bytes, steps.tensor().At(t).data(), bytes);
      }
      return x;
    }
    int64_t heads = 8;
  };
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16})
    for (double dt_max : {0.1, 1.0, kInfinity}) {
      if (Gpu::Short() && dt_max != 1.0) continue;
      SCOPED_TRACE(testing::Message() << "dt at most " << dt_max << ", " << Name(dtype));
      Gpu gpu(dtype, kSpace);
      Draws draws(400);
      Extreme op(dtype, draws, {8, 64, 128, 1, 0, dt_max});
      Try(op, gpu, draws, 100, 8);
    }
}

}  // namespace
}  // namespace bamba
