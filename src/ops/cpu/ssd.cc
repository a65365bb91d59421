#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ssd.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/ssd.h"
#include "ops/op_table.h"
#include "ops/temporaries.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// A head's view of one chunk: the inputs of its tokens up to the last one known, s counted from the chunk's start.
struct Chunk {
  int64_t tokens;
  const float* input[kSsdChunk];         // rows x | B | C
  HWY_ALIGN float dt[kSsdChunk];         // after bias, softplus and clamp
  HWY_ALIGN float log_decay[kSsdChunk];  // −dt exp(A_log)
};

// Turns dt from raw steps into steps.
void TakeSteps(const HeadNumbers& head, Chunk& c) {
  const Vec bias = hn::Set(F32(), head.dt_bias), low = hn::Set(F32(), head.dt_min), high = hn::Set(F32(), head.dt_max);
  const Vec rate = hn::Neg(Exp(hn::Set(F32(), head.a_log)));
  ForLanes(c.tokens, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec raw = hn::Add(lanes.Load(c.dt + i), bias);
    const Vec softplus = hn::IfThenElse(hn::Gt(raw, Set(20)), raw, hn::Log1p(F32(), Exp(raw)));
    const Vec dt = hn::Max(low, hn::Min(high, softplus));  // in this order NaN stays NaN
    lanes.Store(dt, c.dt + i);
    lanes.Store(hn::Mul(dt, rate), c.log_decay + i);
  });
}

// Logs of the decays up to and with one token, which moves through the chunk: from the chunk's start, and from each token before it. Each is summed up by
// itself, in order. The difference of two sums from the chunk's start would be the same number, but lose its digits after a large step.
struct Decays {
  float from_start = 0;
  HWY_ALIGN float from[kSsdChunk];

  void MoveTo(const Chunk& c, int64_t t) {
    const Vec step = hn::Set(F32(), c.log_decay[t]);
    ForLanes(t, [&](auto lanes, int64_t s) HWY_ATTR { lanes.Store(hn::Add(lanes.Load(from + s), step), from + s); });
    from[t] = 0;
    from_start += c.log_decay[t];
  }
  // weights[s] = decay from s to t · dt_s for s ≤ t.
  void DecayedSteps(const Chunk& c, int64_t t, float* weights) const {
    ForLanes(t + 1, [&](auto lanes, int64_t s) HWY_ATTR { lanes.Store(hn::Mul(Exp(lanes.Load(from + s)), lanes.Load(c.dt + s)), weights + s); });
  }
};

// Tokens [t, t + kTokens) of a chunk: y_t = a(b, t) · (S C_t) + Σ_{s ≤ t} a(s, t) · dt_s · (C_t · B_s) · x_s + D · x_t, a the decays,  for rows
// [first, first + rows) of the head's S, in this order for every token. `carried`: those rows of the chunk's initial S, null at the sequence's start. `decays`
// are at the token before.
template <int kTokens>
void ScanTokens(const ScanShape& shape, const HeadNumbers& head, const Chunk& c, Decays& decays, int64_t t, const float* const (&scores)[kTokens],
                const float* carried, int64_t first, int64_t rows, float* const (&y)[kTokens]) {
  HWY_ALIGN float weights[kTokens][kSsdChunk];
  const float* token_c[kTokens];
  float from_start[kTokens];
  int64_t counts[kTokens];
  for (int i = 0; i < kTokens; i++) {
    decays.MoveTo(c, t + i);
    decays.DecayedSteps(c, t + i, weights[i]);
    for (int64_t s = 0; s <= t + i; s++) weights[i][s] *= scores[i][s];
    token_c[i] = c.input[t + i] + shape.c, from_start[i] = ExpOf(decays.from_start), counts[i] = t + i + 1;
  }
  if (carried)
    Dots(
        rows, [&](int64_t p) HWY_ATTR { return carried + p * shape.state; }, token_c, shape.state, y);
  const Vec d = hn::Set(F32(), head.d);
  const int64_t x = shape.x + first;
  WeightedSums(
      counts, [&](int i, int64_t s) HWY_ATTR { return weights[i][s]; }, [&](int64_t s) HWY_ATTR { return c.input[s] + x; }, rows,
      [&](int i, auto lanes, int64_t at) HWY_ATTR { return carried ? hn::Mul(hn::Set(F32(), from_start[i]), lanes.Load(y[i] + at)) : hn::Zero(F32()); },
      [&](int i, auto lanes, int64_t at, Vec sum) HWY_ATTR { lanes.Store(hn::MulAdd(d, lanes.Load(c.input[t + i] + x + at), sum), y[i] + at); });
}

// next = a(b, last) · S + Σ_s a(s, last) · dt_s · x_s ⊗ B_s, summed in order of s, for a full chunk. `next` may be `carried` itself.
void AdvanceState(const ScanShape& shape, const Chunk& c, const Decays& decays, const float* carried, int64_t first, int64_t rows, float* next) {
  constexpr int64_t kBlock = 64;  // rows whose weighted inputs are kept
  HWY_ALIGN float steps[kSsdChunk], weights[kSsdChunk][kBlock];
  decays.DecayedSteps(c, kSsdChunk - 1, steps);
  const Vec decay = hn::Set(F32(), ExpOf(decays.from_start));
  for (int64_t p = 0; p < rows; p += kTogether) {
    if (p % kBlock == 0)
      for (int64_t s = 0; s < kSsdChunk; s++) ScaleRow(steps[s], c.input[s] + shape.x + first + p, weights[s], std::min(kBlock, rows - p));
    WithRows<kTogether>(std::min<int64_t>(kTogether, rows - p), [&](auto count) HWY_ATTR {
      constexpr int kRows = decltype(count)::value;
      const float* from = carried ? carried + p * shape.state : nullptr;
      float* to = next + p * shape.state;
      int64_t counts[kRows];
      std::fill_n(counts, kRows, kSsdChunk);
      WeightedSums(
          counts, [&](int r, int64_t s) HWY_ATTR { return weights[s][p % kBlock + r]; }, [&](int64_t s) HWY_ATTR { return c.input[s] + shape.b; }, shape.state,
          [&](int r, auto lanes, int64_t i) HWY_ATTR { return from ? hn::Mul(decay, lanes.Load(from + r * shape.state + i)) : hn::Zero(F32()); },
          [&](int r, auto lanes, int64_t i, Vec sum) HWY_ATTR { lanes.Store(sum, to + r * shape.state + i); });
    });
  }
}

// The scores of rows [first, last) of a sequence's rows, for all groups.
void ScoreRows(const Scan& scan, const Sequence& s, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    const int64_t token = s.position + row - s.row, b = token - token % kSsdChunk;
    for (int64_t group = 0; group < scan.shape.groups; group++) {
      const int64_t h = group * (scan.shape.heads / scan.shape.groups);
      const ScanShape shape = scan.ShapeOf(h);
      const float* const token_c[] = {scan.Input(s, token) + shape.c};
      float* const scores[] = {scan.Scores(s, token, h)};
      Dots(
          token - b + 1, [&](int64_t i) HWY_ATTR { return scan.Input(s, b + i) + shape.b; }, token_c, shape.state, scores);
    }
  }
}

// Rows [first, first + rows) of the states of `heads` heads, from h on, through one sequence. They depend on no other row of a state. Heads go through a chunk
// one after the other while its B and C, which a group shares, are in the cache.
void ScanHeads(const Scan& scan, const Sequence& s, int64_t h, int64_t heads, int64_t first, int64_t rows) {
  const bool kept = scan.Keeps(s);
  HWY_ALIGN float scratch[kScanHeads][kScanScratch];
  const int64_t end = s.position + s.rows;
  Chunk c;
  for (int64_t b = s.position - s.position % kSsdChunk; b < end; b += kSsdChunk) {
    c.tokens = std::min(kSsdChunk, end - b);
    for (int64_t i = 0; i < c.tokens; i++) c.input[i] = scan.Input(s, b + i);
    for (int64_t j = 0; j < heads; j++) {
      const ScanShape shape = scan.ShapeOf(h + j);
      const HeadNumbers head = scan.NumbersOf(h + j);
      for (int64_t i = 0; i < c.tokens; i++) c.dt[i] = scan.RawStep(s, b + i, h + j);
      TakeSteps(head, c);
      const int64_t offset = first * shape.state;
      const float* carried = b == 0 ? nullptr : kept ? scan.Boundary(s, b, h + j) + offset : scratch[j];
      Decays decays;
      int64_t t = 0;
      for (; b + t < s.position; t++) decays.MoveTo(c, t);
      while (t < c.tokens)
        WithRows<kTogether>(std::min<int64_t>(kTogether, c.tokens - t), [&](auto count) HWY_ATTR {
          constexpr int kTokens = decltype(count)::value;
          const float* scores[kTokens];
          float* y[kTokens];
          for (int i = 0; i < kTokens; i++) scores[i] = scan.Scores(s, b + t + i, h + j), y[i] = scan.Output(s, b + t + i) + shape.x + first;
          ScanTokens<kTokens>(shape, head, c, decays, t, scores, carried, first, rows, y);
          t += kTokens;
        });
      if (c.tokens == kSsdChunk) AdvanceState(shape, c, decays, carried, first, rows, kept ? scan.Boundary(s, b + kSsdChunk, h + j) + offset : scratch[j]);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(ScanHeads);
HWY_EXPORT(ScoreRows);

namespace {

// The last tokens' inputs, for calls that go on in mid-chunk. Only after every head has read the older ones.
void KeepInputs(Context& ctx, const Tensor& xbc, const Tensor& dt, const Batch& batch, const MambaState& state) {
  if (!state.ssm) return;
  ctx.threads->For(static_cast<int64_t>(batch.sequences.size()), Grain(kSsdChunk * xbc.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const Sequence& s = batch.sequences[static_cast<size_t>(i)];
      if (s.slot < 0) continue;
      ForKeptTokens(s, state.xbc.shape(1), [&](int64_t token) {
        const int64_t row = s.row + token - s.position;
        std::copy_n(xbc.Row<float>(row), xbc.cols(), RingRow(state.xbc, s.slot, token));
        std::copy_n(dt.Row<float>(row), dt.cols(), RingRow(state.dt, s.slot, token));
      });
    }
  });
}

}  // namespace

void SsdScan(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
             const Batch& batch, const MambaState& state, const Tensor& y) {
  if (xbc.rows() == 0) return;
  Frame frame(ctx);
  const Tensor scores = ScanScores(ctx, xbc.rows(), shape.groups);
  const Scan scan = {xbc, dt, dt_bias, a_log, d, shape, state, y, scores};
  CHECK_MSG(shape.state <= kScanScratch, "state of {}", shape.state);
  ctx.threads->For(xbc.rows(), Grain(kSsdChunk / 2 * shape.groups * shape.state), [&](int64_t begin, int64_t end, int) {
    ForSequences(batch, begin, end, [&](const Sequence& s, int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(ScoreRows)(scan, s, first, last); });
  });
  // Pieces of several heads, if all threads have some, or of a part of a head's rows.
  const int64_t rows = std::clamp<int64_t>(kScanScratch / shape.state, 1, shape.head_dim), pieces = CeilDiv(shape.head_dim, rows);
  const int64_t sequences = static_cast<int64_t>(batch.sequences.size());
  const int64_t heads = pieces > 1 ? 1 : std::clamp<int64_t>(sequences * shape.heads / (4 * ctx.threads->threads()), 1, kScanHeads);
  const int64_t parts = CeilDiv(shape.heads, heads), per_sequence = parts * pieces;
  const int64_t operations = heads * (2 * rows + kSsdChunk) * shape.state * (xbc.rows() / sequences + 1);
  ctx.threads->For(sequences * per_sequence, Grain(operations), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % pieces * rows, h = i % per_sequence / pieces * heads;
      HWY_DYNAMIC_DISPATCH(ScanHeads)
      (scan, batch.sequences[static_cast<size_t>(i / per_sequence)], h, std::min(heads, shape.heads - h), first, std::min(rows, shape.head_dim - first));
    }
  });
  KeepInputs(ctx, xbc, dt, batch, state);
}

}  // namespace bamba::cpu
#endif
