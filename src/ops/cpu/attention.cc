#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// A block of keys and values of one head: row i is key i of the block.
struct KeyBlock {
  const float *k, *v;
  int64_t k_stride, v_stride;
};

KeyBlock BlockOf(const Sequence& s, const Tensor& k, const Tensor& v, const KvPages& kv, int64_t block, int64_t column) {
  if (s.slot < 0) {
    const int64_t row = s.row + block * kKvBlock;
    return {k.Row<float>(row) + column, v.Row<float>(row) + column, k.stride(0), v.stride(0)};
  }
  const int64_t page = s.pages[block];
  return {kv.k.Row<float>(page) + column, kv.v.Row<float>(page) + column, kv.k.stride(1), kv.v.stride(1)};
}

// The softmax over the blocks so far: largest score, and the sum of e^(score − top).
struct Softmax {
  float top, sum;
};

// Takes the block's first keys, as many as each row sees, into the rows' softmaxes and outputs y (scaled by e^−top, not yet divided by the sum).
template <int kRows>
void AddBlock(const KeyBlock& block, const int64_t (&keys)[kRows], const float* const (&q)[kRows], float scale, int64_t head_dim, bool first, Softmax* softmax,
              float* const (&y)[kRows]) {
  HWY_ALIGN float p[kRows][kKvBlock];
  float* scores[kRows];
  float before[kRows], now[kRows];
  for (int r = 0; r < kRows; r++) scores[r] = p[r];
  Dots(
      keys[kRows - 1], [&](int64_t i) HWY_ATTR { return block.k + i * block.k_stride; }, q, head_dim, scores);
  for (int r = 0; r < kRows; r++) {
    ForLanes(keys[r], [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(lanes.Load(p[r] + i), hn::Set(F32(), scale)), p[r] + i); });
    const float top = MaxOf(p[r], keys[r]);
    Vec sums = hn::Zero(F32());
    ForLanes(keys[r], [&](auto lanes, int64_t i) HWY_ATTR {
      const Vec e = Exp(hn::Sub(LoadOr(Set(-kInfinity), lanes, p[r] + i), hn::Set(F32(), top)));
      sums = hn::Add(sums, e);
      lanes.Store(e, p[r] + i);
    });
    const float sum = SumOfLanes(sums);
    const float new_top = first ? top : std::max(softmax[r].top, top);
    before[r] = first ? 0 : ExpOf(softmax[r].top - new_top), now[r] = ExpOf(top - new_top);
    softmax[r] = {new_top, first ? sum : softmax[r].sum * before[r] + sum * now[r]};
  }
  WeightedSums(
      keys, [&](int r, int64_t i) HWY_ATTR { return p[r][i]; }, [&](int64_t i) HWY_ATTR { return block.v + i * block.v_stride; }, head_dim,
      [](int, auto, int64_t) HWY_ATTR { return hn::Zero(F32()); },
      [&](int r, auto lanes, int64_t i, Vec o)
          HWY_ATTR { lanes.Store(first ? o : hn::MulAdd(o, hn::Set(F32(), now[r]), hn::Mul(lanes.Load(y[r] + i), hn::Set(F32(), before[r]))), y[r] + i); });
}

// One head of rows [first, last) of a sequence. Some rows go through a block of keys together, while it is in the cache.
void AttendRows(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Sequence& s, const KvPages& kv, int64_t head,
                int64_t first, int64_t last, const Tensor& y) {
  constexpr int64_t kRows = 64;
  Softmax softmax[kRows];
  const int64_t dim = shape.head_dim, kv_column = head / (shape.heads / shape.kv_heads) * dim;
  const float scale = static_cast<float>(shape.scale);
  for (int64_t begin = first; begin < last; begin += kRows) {
    const int64_t rows = std::min(kRows, last - begin), position = s.position + begin - s.row;
    for (int64_t key = 0; key < position + rows; key += kKvBlock) {
      const KeyBlock block = BlockOf(s, k, v, kv, key / kKvBlock, kv_column);
      for (int64_t r = std::max<int64_t>(0, key - position); r < rows;)
        WithRows<kTogether>(std::min<int64_t>(kTogether, rows - r), [&](auto count) HWY_ATTR {
          constexpr int kCount = decltype(count)::value;
          const float* queries[kCount];
          float* out[kCount];
          int64_t keys[kCount];
          for (int i = 0; i < kCount; i++) {
            queries[i] = q.Row<float>(begin + r + i) + head * dim, out[i] = y.Row<float>(begin + r + i) + head * dim;
            keys[i] = std::min(kKvBlock, position + r + i + 1 - key);
          }
          AddBlock<kCount>(block, keys, queries, scale, dim, key == 0, softmax + r, out);
          r += kCount;
        });
    }
    for (int64_t r = 0; r < rows; r++) {
      float* out = y.Row<float>(begin + r) + head * dim;
      ForLanes(dim, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Div(lanes.Load(out + i), hn::Set(F32(), softmax[r].sum)), out + i); });
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(AttendRows);

namespace {

void StoreKeys(Context& ctx, const Tensor& k, const Tensor& v, const Batch& batch, const KvPages& kv) {
  const int64_t columns = k.cols();
  ctx.threads->For(k.rows(), Grain(2 * columns), [&](int64_t begin, int64_t end, int) {
    ForSequences(batch, begin, end, [&](const Sequence& s, int64_t first, int64_t last) {
      if (s.slot < 0) return;
      for (int64_t t = first; t < last; t++) {
        const int64_t position = s.position + t - s.row, page = s.pages[position / kKvBlock], entry = position % kKvBlock;
        std::copy_n(k.Row<float>(t), columns, kv.k.Row<float>(page) + entry * kv.k.stride(1));
        std::copy_n(v.Row<float>(t), columns, kv.v.Row<float>(page) + entry * kv.v.stride(1));
      }
    });
  });
}

}  // namespace

void Attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const KvPages& kv,
               const Tensor& y) {
  const int64_t rows = q.rows();
  if (rows == 0) return;
  StoreKeys(ctx, k, v, batch, kv);
  int64_t keys = 0;  // of the longest sequence
  for (const Sequence& s : batch.sequences) keys = std::max(keys, s.position + s.rows);
  // Neighbouring rows share the keys in the cache, so a head's rows stay together up to a point.
  const int64_t together = std::clamp<int64_t>(rows * shape.heads / (32 * ctx.threads->threads()), 16, 64);
  const int64_t grain = std::max(Grain(2 * keys * shape.head_dim), std::min(rows, together));
  ctx.threads->For(rows * shape.heads, grain, [&](int64_t begin, int64_t end, int) {
    while (begin < end) {
      const int64_t head = begin / rows, first = begin % rows, last = std::min(rows, first + end - begin);
      ForSequences(batch, first, last, [&](const Sequence& s, int64_t from, int64_t to) {
        HWY_DYNAMIC_DISPATCH(AttendRows)(q, k, v, shape, s, kv, head, from, to, y);
      });
      begin += last - first;
    }
  });
}

}  // namespace bamba::cpu
#endif
