// Backward of attention in tiles of kTile queries by kTile keys, with probabilities computed again: P_ts = exp(scale q_t·k_s − lse_t) for s ≤ t,
//   dS_ts = scale P_ts (dy_t·v_s − y_t·dy_t)     dq_t = Σ_s dS_ts k_s     dk_s = Σ_t dS_ts q_t     dv_s = Σ_t P_ts dy_t
// (Dao et al. 2022, FlashAttention). A first pass over tiles of queries gives dq and lse, a second over tiles of keys gives dk and dv, each sum in the order of
// query heads, then of rows: nothing is shared between tiles of one pass, so any number of threads gives the same bits.
#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention_backward.cc"
#include "hwy/foreach_target.h"
#include "ops/cpu/activations-inl.h"
#include "ops/cpu/attention_backward.h"
#include "ops/cpu/small_matmul-inl.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// to [head_dim, kTile] = rows transposed; 0 beyond their end.
void TransposeTile(HeadRows<const float> from, int64_t rows, int64_t head_dim, std::vector<float>& to) {
  std::fill(to.begin(), to.end(), 0.0f);
  Transpose(rows, head_dim, from.data, from.stride, to.data(), kTile);
}

// product [rows, kTile] = a · b, for b a transposed tile.
void Products(HeadRows<const float> a, int64_t rows, int64_t head_dim, const std::vector<float>& b, float* product) {
  std::fill(product, product + rows * kTile, 0.0f);
  AddMatMul(rows, kTile, head_dim, {a.data, a.stride}, b.data(), kTile, product, kTile);
}

// The softmax of each query so far: the largest score, and Σ exp(score − top).
struct RunningSoftmax {
  float top[kTile], sum[kTile], shrink[kTile];
  RunningSoftmax() {
    std::fill_n(top, kTile, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, kTile, 0.0f);
  }
};

// Takes a tile of keys in. scores [keys, kTile]: q·k in, e (dy·v − delta) out with e = exp(score − top); products [keys, kTile]: dy·v. Lanes are the n queries;
// the first of them stands `ahead` positions after the first key. What earlier tiles gave has to be multiplied by `shrink`.
void AddKeys(const AttentionHead& head, int64_t keys, int64_t ahead, int64_t n, const float* delta, const float* products, float* scores,
             RunningSoftmax& softmax) {
  const Vec none = Set(-kInfinity), scale = Set(head.scale);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec query = hn::Iota(F32(), static_cast<float>(ahead + i)), old_top = lanes.Load(softmax.top + i);
    Vec top = old_top, sum = hn::Zero(F32());
    for (int64_t s = 0; s < keys; s++) {
      const Vec score = hn::IfThenElse(hn::Ge(query, Set(static_cast<double>(s))), hn::Mul(scale, lanes.Load(scores + s * kTile + i)), none);
      lanes.Store(score, scores + s * kTile + i);
      top = hn::Max(top, score);
    }
    for (int64_t s = 0; s < keys; s++) {
      const Vec e = Exp(hn::Sub(lanes.Load(scores + s * kTile + i), top));
      sum = hn::Add(sum, e);
      lanes.Store(hn::Mul(e, hn::Sub(lanes.Load(products + s * kTile + i), lanes.Load(delta + i))), scores + s * kTile + i);
    }
    const Vec shrink = Exp(hn::Sub(old_top, top));
    lanes.Store(shrink, softmax.shrink + i);
    lanes.Store(top, softmax.top + i);
    lanes.Store(hn::MulAdd(lanes.Load(softmax.sum + i), shrink, sum), softmax.sum + i);
  });
}

// dq, lse and delta of the n queries from `begin`.
void QueryTile(const AttentionHead& head, int64_t begin, int64_t n, AttentionScratch& scratch) {
  const int64_t dim = head.head_dim;
  float scores[kTile * kTile], products[kTile * kTile];
  RunningSoftmax softmax;
  TransposeTile(head.q.From(begin), n, dim, scratch.first);
  TransposeTile(head.dy.From(begin), n, dim, scratch.second);
  for (int64_t t = begin; t < begin + n; t++) {
    head.delta[t] = Dot(head.y.From(t).data, head.dy.From(t).data, dim);
    std::fill_n(head.dq.From(t).data, dim, 0.0f);
  }
  for (int64_t key = 0; key <= begin; key += kTile) {
    const int64_t keys = std::min(kTile, begin + n - key);
    Products(head.k.From(key), keys, dim, scratch.first, scores);
    Products(head.v.From(key), keys, dim, scratch.second, products);
    AddKeys(head, keys, begin - key, n, head.delta + begin, products, scores, softmax);
    for (int64_t t = 0; t < n; t++) ScaleRow(softmax.shrink[t], head.dq.From(begin + t).data, head.dq.From(begin + t).data, dim);
    AddMatMul(n, dim, keys, Matrix{scores, kTile}.Transposed(), head.k.From(key).data, head.k.stride, head.dq.From(begin).data, head.dq.stride);
  }
  for (int64_t t = 0; t < n; t++) {
    head.lse[begin + t] = softmax.top[t] + std::log(softmax.sum[t]);
    ScaleRow(head.scale / softmax.sum[t], head.dq.From(begin + t).data, head.dq.From(begin + t).data, dim);
  }
}

// Adds one query head's part to dk and dv of the n keys from `begin`.
void KeyTile(const AttentionHead& head, int64_t begin, int64_t n, AttentionScratch& scratch) {
  const int64_t dim = head.head_dim;
  float scores[kTile * kTile], products[kTile * kTile];
  TransposeTile(head.k.From(begin), n, dim, scratch.first);
  TransposeTile(head.v.From(begin), n, dim, scratch.second);
  for (int64_t query = begin; query < head.rows; query += kTile) {
    const int64_t queries = std::min(kTile, head.rows - query);
    Products(head.q.From(query), queries, dim, scratch.first, scores);
    Products(head.dy.From(query), queries, dim, scratch.second, products);
    for (int64_t t = 0; t < queries; t++) {
      float *p = scores + t * kTile, *ds = products + t * kTile;
      const Vec scale = Set(head.scale), lse = Set(head.lse[query + t]), delta = Set(head.delta[query + t]), last = Set(static_cast<double>(query + t - begin));
      ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
        const Vec e = Exp(hn::MulSub(scale, lanes.Load(p + i), lse));
        const Vec probability = hn::IfThenElseZero(hn::Le(hn::Iota(F32(), static_cast<float>(i)), last), e);
        lanes.Store(probability, p + i);
        lanes.Store(hn::Mul(hn::Mul(scale, probability), hn::Sub(lanes.Load(ds + i), delta)), ds + i);
      });
    }
    AddMatMul(n, dim, queries, Matrix{scores, kTile}.Transposed(), head.dy.From(query).data, head.dy.stride, head.dv.From(begin).data, head.dv.stride);
    AddMatMul(n, dim, queries, Matrix{products, kTile}.Transposed(), head.q.From(query).data, head.q.stride, head.dk.From(begin).data, head.dk.stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {
namespace {

HWY_EXPORT(QueryTile);
HWY_EXPORT(KeyTile);

template <typename Number>
HeadRows<Number> RowsOf(const Tensor& t, int64_t row, int64_t head, int64_t head_dim) {
  return {t.Row<float>(row) + head * head_dim, t.stride(0)};
}

}  // namespace

void AttentionBackward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const Tensor& y,
                       const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, rows = q.rows();
  std::vector<float> lse(static_cast<size_t>(shape.heads * rows)), delta(lse.size());
  std::vector<AttentionScratch> scratch(static_cast<size_t>(ctx.threads->threads()), AttentionScratch(dim));
  const auto head_of = [&](const Sequence& s, int64_t head) {
    const auto in = [&](const Tensor& t, int64_t h) { return RowsOf<const float>(t, s.row, h, dim); };
    const auto out = [&](const Tensor& t, int64_t h) { return RowsOf<float>(t, s.row, h, dim); };
    const int64_t kv = head / group;
    return AttentionHead{s.rows,
                         dim,
                         static_cast<float>(shape.scale),
                         in(q, head),
                         in(k, kv),
                         in(v, kv),
                         in(y, head),
                         in(dy, head),
                         out(dq, head),
                         out(dk, kv),
                         out(dv, kv),
                         lse.data() + head * rows + s.row,
                         delta.data() + head * rows + s.row};
  };
  for (const Sequence& s : batch.sequences) {
    const int64_t tiles = (s.rows + kTile - 1) / kTile;
    ctx.threads->For(shape.heads * tiles, 1, [&](int64_t first, int64_t last, int thread) {
      for (int64_t i = first; i < last; i++) {
        const int64_t begin = i % tiles * kTile;
        HWY_DYNAMIC_DISPATCH(QueryTile)(head_of(s, i / tiles), begin, std::min(kTile, s.rows - begin), scratch[static_cast<size_t>(thread)]);
      }
    });
    ctx.threads->For(shape.kv_heads * tiles, 1, [&](int64_t first, int64_t last, int thread) {
      for (int64_t i = first; i < last; i++) {
        const int64_t begin = i % tiles * kTile, n = std::min(kTile, s.rows - begin), kv = i / tiles;
        for (int64_t t = s.row + begin; t < s.row + begin + n; t++) {
          std::fill_n(dk.Row<float>(t) + kv * dim, dim, 0.0f);
          std::fill_n(dv.Row<float>(t) + kv * dim, dim, 0.0f);
        }
        for (int64_t head = kv * group; head < (kv + 1) * group; head++)
          HWY_DYNAMIC_DISPATCH(KeyTile)(head_of(s, head), begin, n, scratch[static_cast<size_t>(thread)]);
      }
    });
  }
}

}  // namespace bamba::cpu
#endif
