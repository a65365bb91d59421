// The GPU's attention: within the bound of the reference in double, and in f32 and where the context is invariant the same bits for any split of a sequence and
// any neighbours.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/gpu.h"
#include "tests/support/numbers.h"

namespace bamba {
namespace {

// A run of rows of one sequence in one call.
struct Run {
  int sequence;
  int64_t rows;
};
using Call = std::vector<Run>;

// Some sequences with all of their queries, keys and values, and how they were attended by calls of the op.
class Sequences {
 public:
  Sequences(Dtype dtype, const AttentionShape& shape, std::vector<int64_t> lengths, uint64_t seed)
      : dtype_(dtype), shape_(shape), lengths_(std::move(lengths)) {
    Draws draws(seed);
    rows_ = std::accumulate(lengths_.begin(), lengths_.end(), int64_t{0});
    x_ = Numbers(dtype, {rows_, In()}, draws.Normal());
    for (int64_t length : lengths_) first_.push_back(first_.empty() ? 0 : first_.back() + before_), before_ = length;
    const auto sequences = std::ssize(lengths_);
    pages_of_sequence_ = (*std::max_element(lengths_.begin(), lengths_.end()) + kKvBlock - 1) / kKvBlock;
    table_.resize(static_cast<size_t>(sequences * pages_of_sequence_));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), draws.random());
  }

  int64_t In() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }
  int64_t Out() const { return shape_.heads * shape_.head_dim; }
  int64_t rows() const { return rows_; }
  const std::vector<int64_t>& lengths() const { return lengths_; }

  // Every sequence in one run.
  Call Whole() const {
    Call call;
    for (size_t i = 0; i < lengths_.size(); i++) call.push_back({static_cast<int>(i), lengths_[i]});
    return call;
  }
  // Calls of random runs, some of them empty, `most` rows at most.
  std::vector<Call> Split(Draws& draws, int64_t most) const {
    std::vector<Call> calls;
    std::vector<int64_t> left = lengths_;
    while (std::any_of(left.begin(), left.end(), [](int64_t n) { return n > 0; })) {
      Call call;
      for (size_t i = 0; i < left.size(); i++) {
        const int64_t rows = std::min(left[i], most == 1 ? 1 : draws.Int(0, most));
        if (rows == 0 && draws.Int(0, 1)) continue;
        if (rows == 0 && most == 1) continue;
        call.push_back({static_cast<int>(i), rows}), left[i] -= rows;
      }
      std::shuffle(call.begin(), call.end(), draws.random());
      calls.push_back(std::move(call));
    }
    return calls;
  }

  // Outputs of all rows, in double. Without slots there is one call of whole sequences.
  std::vector<double> OnGpu(const std::vector<Call>& calls, bool slots, bool invariant) const {
    Gpu gpu(dtype_, size_t{256} << 20);
    gpu.ctx.invariant = invariant;
    KvPages kv;
    if (slots) {
      Numbers empty(dtype_, {std::ssize(table_), kKvBlock, shape_.kv_heads, shape_.head_dim}, [] { return std::numeric_limits<double>::quiet_NaN(); });
      kv = {gpu.Upload(empty), gpu.Upload(empty)};
    }
    std::vector<double> out(static_cast<size_t>(rows_ * Out()), std::numeric_limits<double>::quiet_NaN());
    std::vector<int64_t> done(lengths_.size());
    for (const Call& call : calls) {
      Batch batch;
      std::vector<int64_t> row_of;  // in x_
      for (const Run& run : call) {
        const auto i = static_cast<size_t>(run.sequence);
        batch.sequences.push_back({.row = std::ssize(row_of), .rows = run.rows});
        if (slots) {
          Sequence& s = batch.sequences.back();
          s.position = done[i], s.slot = run.sequence, s.pages = table_.data() + run.sequence * pages_of_sequence_;
        }
        for (int64_t t = 0; t < run.rows; t++) row_of.push_back(first_[i] + done[i]++);
      }
      const int64_t rows = std::ssize(row_of);
      if (rows == 0) continue;
      batch.tokens.assign(row_of.size(), 0);
      const size_t row_bytes = static_cast<size_t>(In()) * SizeOf(dtype_);
      const Numbers x(dtype_, {rows, In()}), y(dtype_, {rows, Out()}, [] { return std::numeric_limits<double>::quiet_NaN(); });
      for (int64_t t = 0; t < rows; t++)
        std::memcpy(static_cast<char*>(x.tensor().data()) + static_cast<size_t>(t) * row_bytes,
                    static_cast<const char*>(x_.tensor().data()) + static_cast<size_t>(row_of[static_cast<size_t>(t)]) * row_bytes, row_bytes);
      const Tensor there = gpu.Upload(x), result = gpu.Upload(y);
      ops::Begin(gpu.ctx, batch);
      ops::Attention(gpu.ctx, Q(there), K(there), V(there), shape_, batch, kv, result);
      Gpu::Download(result, y);
      const Numbers wide = y.Double();
      for (int64_t t = 0; t < rows; t++) std::copy_n(wide.doubles() + t * Out(), Out(), out.data() + row_of[static_cast<size_t>(t)] * Out());
    }
    return out;
  }

  // Compares only some rows of each sequence with what is computed on the host: the first ones, the last ones, and every so manieth.
  void CheckOnly(int64_t every) { every_ = every; }
  bool Checked(size_t sequence, int64_t t) const { return every_ == 1 || t < 2 || t + 4 >= lengths_[sequence] || t % every_ == every_ / 2; }

  // Makes keys larger from token to token of each sequence, the largest of them thirty times as large.
  void Grow() {
    const Numbers x = x_.Double();
    for (size_t i = 0; i < lengths_.size(); i++)
      for (int64_t t = 0; t < lengths_[i]; t++)
        for (int64_t c = Out(); c < Out() + shape_.kv_heads * shape_.head_dim; c++)
          x.doubles()[(first_[i] + t) * In() + c] *= 1 + 29 * static_cast<double>(t) / static_cast<double>(lengths_[i]);
    Convert(x.doubles(), Dtype::kF64, x_.tensor().data(), dtype_, static_cast<size_t>(rows_ * In()));
  }

  // NaN in rows that aren't checked.
  std::vector<double> Reference() const {
    Device ref(ref::kTable, Dtype::kF64, 1, size_t{1} << 30);
    const Numbers x = x_.Double();
    const int64_t kv_columns = shape_.kv_heads * shape_.head_dim;
    const Numbers k(Dtype::kF64, {std::ssize(table_), kKvBlock, shape_.kv_heads, shape_.head_dim}),
        v(Dtype::kF64, {std::ssize(table_), kKvBlock, shape_.kv_heads, shape_.head_dim});
    // Each row as a sequence's next one, whose earlier keys and values are in the pages.
    Batch batch;
    std::vector<int64_t> rows;
    for (size_t i = 0; i < lengths_.size(); i++)
      for (int64_t t = 0; t < lengths_[i]; t++) {
        const int32_t* const pages = table_.data() + static_cast<int64_t>(i) * pages_of_sequence_;
        const double* const row = x.doubles() + (first_[i] + t) * In() + Out();
        const int64_t at = (pages[t / kKvBlock] * kKvBlock + t % kKvBlock) * kv_columns;
        std::copy_n(row, kv_columns, k.doubles() + at), std::copy_n(row + kv_columns, kv_columns, v.doubles() + at);
        if (!Checked(i, t)) continue;
        batch.sequences.push_back({.row = std::ssize(rows), .rows = 1, .position = t, .slot = static_cast<int32_t>(i), .pages = pages});
        rows.push_back(first_[i] + t);
      }
    batch.tokens.assign(rows.size(), 0);
    const Numbers in(Dtype::kF64, {std::ssize(rows), In()}), y(Dtype::kF64, {std::ssize(rows), Out()});
    for (size_t i = 0; i < rows.size(); i++) std::copy_n(x.doubles() + rows[i] * In(), In(), in.doubles() + static_cast<int64_t>(i) * In());
    ops::Attention(ref.ctx, Q(in), K(in), V(in), shape_, batch, {k, v}, y);
    std::vector<double> out(static_cast<size_t>(rows_ * Out()), std::numeric_limits<double>::quiet_NaN());
    for (size_t i = 0; i < rows.size(); i++) std::copy_n(y.doubles() + static_cast<int64_t>(i) * Out(), Out(), out.data() + rows[i] * Out());
    return out;
  }

  // As plain bf16 operations compute it: products in f32, of which scores, weights and outputs are rounded to bf16.
  std::vector<double> Naive() const {
    const auto rounded = [](float x) {
      uint16_t bits;
      float back;
      Convert(&x, Dtype::kF32, &bits, Dtype::kBf16, 1), Convert(&bits, Dtype::kBf16, &back, Dtype::kF32, 1);
      return back;
    };
    const Numbers x = x_.Double();
    std::vector<double> out(static_cast<size_t>(rows_ * Out()));
    const int64_t dim = shape_.head_dim;
    std::vector<float> p, sums;
    for (size_t i = 0; i < lengths_.size(); i++)
      for (int64_t t = 0; t < lengths_[i]; t++)
        for (int64_t h = 0; h < shape_.heads && Checked(i, t); h++) {
          const int64_t g = h / (shape_.heads / shape_.kv_heads);
          const auto row = [&](int64_t at) { return x.doubles() + (first_[i] + at) * In(); };
          p.clear();
          float top = -std::numeric_limits<float>::infinity(), sum = 0;
          for (int64_t s = 0; s <= t; s++) {
            float dot = 0;
            for (int64_t c = 0; c < dim; c++) dot += static_cast<float>(row(t)[h * dim + c]) * static_cast<float>(row(s)[(shape_.heads + g) * dim + c]);
            p.push_back(rounded(rounded(dot) * static_cast<float>(shape_.scale)));
            top = std::max(top, p.back());
          }
          for (float& w : p) sum += w = std::exp(w - top);
          for (float& w : p) w = rounded(w / sum);
          sums.assign(static_cast<size_t>(dim), 0);
          for (int64_t s = 0; s <= t; s++) {
            const double* const value = row(s) + (shape_.heads + shape_.kv_heads + g) * dim;
            for (int64_t c = 0; c < dim; c++) sums[static_cast<size_t>(c)] += p[static_cast<size_t>(s)] * static_cast<float>(value[c]);
          }
          for (int64_t c = 0; c < dim; c++) out[static_cast<size_t>((first_[i] + t) * Out() + h * dim + c)] = rounded(sums[static_cast<size_t>(c)]);
        }
    return out;
  }

  // The bound of f32 for the whole.
  double Bound() const {
    const Numbers x = x_.Double();
    double most = 0;
    for (int64_t i = 0; i < rows_ * In(); i++) most = std::max(most, std::abs(x.doubles()[i]));
    const auto dim = static_cast<double>(shape_.head_dim);
    double norm = 0;
    for (int64_t t = 0; t < rows_; t++)
      for (int64_t h = 0; h < shape_.heads + shape_.kv_heads; h++) {
        double sum = 0;
        for (int64_t c = 0; c < shape_.head_dim; c++) sum += std::pow(x.doubles()[t * In() + h * shape_.head_dim + c], 2);
        norm = std::max(norm, std::sqrt(sum));
      }
    const double dot = norm * norm * shape_.scale, blocks = static_cast<double>(pages_of_sequence_);
    return AttentionBound(dim, dot, dot, blocks, most);
  }

 private:
  Tensor Q(const Tensor& x) const { return x.Columns({0, Out()}); }
  Tensor K(const Tensor& x) const { return x.Columns({Out(), shape_.kv_heads * shape_.head_dim}); }
  Tensor V(const Tensor& x) const { return x.Columns({Out() + shape_.kv_heads * shape_.head_dim, shape_.kv_heads * shape_.head_dim}); }

  Dtype dtype_;
  AttentionShape shape_;
  std::vector<int64_t> lengths_, first_;
  int64_t rows_ = 0, before_ = 0, pages_of_sequence_ = 0, every_ = 1;
  Numbers x_;
  std::vector<int32_t> table_;  // of all sequences, pages_of_sequence_ each
};

// Over the numbers that the reference has.
double Rms(const std::vector<double>& a, const std::vector<double>& reference) {
  double sum = 0;
  size_t count = 0;
  for (size_t i = 0; i < a.size(); i++)
    if (!std::isnan(reference[i])) sum += (a[i] - reference[i]) * (a[i] - reference[i]), count++;
  CHECK(count > 0);
  return std::sqrt(sum / static_cast<double>(count));
}
double Most(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); i++) most = std::max(most, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : std::numeric_limits<double>::infinity());
  return most;
}
// NaN is no value of either.
void ExpectSame(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
  size_t different = 0, first = a.size();
  for (size_t i = 0; i < a.size(); i++)
    if (!(a[i] == b[i])) different++, first = std::min(first, i);
  EXPECT_EQ(different, 0u) << what << ": first at " << first << " of " << a.size() << ": " << (first < a.size() ? a[first] : 0) << " and "
                           << (first < a.size() ? b[first] : 0);
}

AttentionShape ShapeOf(int64_t kv_heads, int64_t group, int64_t head_dim) {
  return {.heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = head_dim, .scale = 1 / std::sqrt(static_cast<double>(head_dim))};
}

std::vector<std::vector<Call>> Plans(const Sequences& s, uint64_t seed) {
  Draws draws(seed);
  if (Gpu::Short()) return {s.Split(draws, 100)};
  return {{s.Whole()}, s.Split(draws, 1), s.Split(draws, 40), s.Split(draws, 200)};
}

class CudaAttentionTest : public testing::TestWithParam<AttentionShape> {};

TEST_P(CudaAttentionTest, F32IsWithinTheBoundAndHasTheSameBitsForAnySplit) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const Sequences s(Dtype::kF32, GetParam(), {1, 64, 130, 0, 65, 31, 200}, 3);
  const std::vector<double> whole = s.OnGpu({s.Whole()}, false, false);
  EXPECT_LE(Most(whole, s.Reference()), s.Bound());
  for (const std::vector<Call>& calls : Plans(s, 4)) ExpectSame(whole, s.OnGpu(calls, true, false), "split");
}

TEST_P(CudaAttentionTest, Bf16IsAsNearAsPlainOperations) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const Sequences s(Dtype::kBf16, GetParam(), {130, 1, 0, 64, 65, 300, 63}, 5);
  const std::vector<double> reference = s.Reference();
  const double naive = Rms(s.Naive(), reference);
  EXPECT_LE(Rms(s.OnGpu({s.Whole()}, false, false), reference), 2 * naive);
  for (const std::vector<Call>& calls : Plans(s, 6)) EXPECT_LE(Rms(s.OnGpu(calls, true, false), reference), 2 * naive) << calls.size() << " calls";
}

TEST_P(CudaAttentionTest, InvariantBf16HasTheSameBitsForAnySplit) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const Sequences s(Dtype::kBf16, GetParam(), {1, 64, 130, 0, 65, 300, 200}, 7);
  const std::vector<double> whole = s.OnGpu({s.Whole()}, false, true);
  EXPECT_LE(Rms(whole, s.Reference()), 2 * Rms(s.Naive(), s.Reference()));
  for (const std::vector<Call>& calls : Plans(s, 8)) ExpectSame(whole, s.OnGpu(calls, true, true), "split");
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaAttentionTest,
                         testing::Values(ShapeOf(2, 4, 128), ShapeOf(1, 1, 128), ShapeOf(1, 5, 128), ShapeOf(1, 20, 128), ShapeOf(1, 1, 16), ShapeOf(3, 3, 32),
                                         ShapeOf(2, 2, 64), ShapeOf(1, 8, 96), ShapeOf(1, 2, 48), ShapeOf(2, 1, 80), ShapeOf(1, 3, 112), ShapeOf(1, 20, 32),
                                         ShapeOf(2, 1, 8), ShapeOf(1, 3, 24), ShapeOf(2, 2, 40), ShapeOf(1, 2, 1), ShapeOf(1, 5, 67), ShapeOf(1, 2, 256)),
                         [](const auto& info) {
                           return std::to_string(info.param.heads) + "over" + std::to_string(info.param.kv_heads) + "of" + std::to_string(info.param.head_dim);
                         });

// Prompts of several tiles, whole and in pieces, on every path.
TEST(CudaLongAttentionTest, Prompts) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const AttentionShape& shape : {ShapeOf(1, 4, 128), ShapeOf(2, 1, 128)}) {
    Sequences s(Dtype::kBf16, shape, {1000, 1, 517, 65}, 11);
    if (Gpu::Short() && shape.kv_heads > 1) continue;
    s.CheckOnly(13);
    const std::vector<double> reference = s.Reference();
    const double naive = Rms(s.Naive(), reference);
    EXPECT_LE(Rms(s.OnGpu({s.Whole()}, false, false), reference), 2 * naive);
    EXPECT_LE(Rms(s.OnGpu({s.Whole()}, true, false), reference), 2 * naive);
    EXPECT_LE(Rms(s.OnGpu({{{0, 700}, {1, 1}, {2, 300}}, {{2, 217}, {0, 300}, {3, 65}}}, true, false), reference), 2 * naive);
    ExpectSame(s.OnGpu({s.Whole()}, true, false), s.OnGpu({s.Whole()}, true, false), "run again");
  }
}

// One token of a long sequence, whose keys are split over many blocks of threads, beside a short one.
TEST(CudaLongAttentionTest, OneTokenAfterMany) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const int64_t longest = Gpu::Short() ? 1100 : 4700;
  Sequences s(Dtype::kBf16, ShapeOf(1, 4, 128), {longest, 3, 1025}, 9);
  s.CheckOnly(101);
  const std::vector<double> reference = s.Reference();
  const double naive = Rms(s.Naive(), reference);
  const std::vector<Call> calls = {{{0, longest - 3}, {1, 1}, {2, 1000}}, {{1, 1}, {0, 1}}, {{0, 1}, {2, 24}}, {{0, 1}, {1, 1}, {2, 1}}};
  EXPECT_LE(Rms(s.OnGpu(calls, true, false), reference), 2 * naive);
  const std::vector<double> once = s.OnGpu(calls, true, false);
  ExpectSame(once, s.OnGpu(calls, true, false), "run again");
  ExpectSame(s.OnGpu({s.Whole()}, false, true), s.OnGpu(calls, true, true), "invariant");
}

// Single tokens of many sequences at a time, of all lengths around those where a page and a share of the keys end; scores that grow along the text, and scores
// that are as good as infinite.
TEST(CudaLongAttentionTest, SingleTokensOfManySequences) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  for (const auto& [shape, longest] : {std::pair{ShapeOf(2, 4, 128), int64_t{130}}, {ShapeOf(1, 7, 128), int64_t{700}}, {ShapeOf(2, 8, 128), int64_t{260}}}) {
    constexpr int kSequences = 9;
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < kSequences; i++) lengths.push_back(i < 4 ? longest - i : 1 + (i * 37 + longest) % longest);
    Sequences s(Dtype::kBf16, shape, lengths, 13);
    s.CheckOnly(1 << 30);
    s.Grow();
    std::vector<Call> calls = {{}, {}, {}};
    for (int i = 0; i < kSequences; i++) {
      const int64_t length = lengths[static_cast<size_t>(i)], alone = std::min<int64_t>(2, length);
      calls[0].push_back({i, length - alone});
      for (int64_t n = 0; n < alone; n++) calls[static_cast<size_t>(1 + n)].push_back({i, 1});
    }
    const std::vector<double> reference = s.Reference(), once = s.OnGpu(calls, true, false);
    EXPECT_LE(Rms(once, reference), 2 * Rms(s.Naive(), reference)) << shape.heads << " heads, " << longest;
    ExpectSame(once, s.OnGpu(calls, true, false), "run again");
    ExpectSame(s.OnGpu({s.Whole()}, false, true), s.OnGpu(calls, true, true), "invariant");
  }
}

}  // namespace
}  // namespace bamba
