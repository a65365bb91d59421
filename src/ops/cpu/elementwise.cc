#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cstring>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

void EmbedRow(const Tensor& table, int64_t id, double scale, float* x) {
  WithWeights(table, [&](const auto* weights) HWY_ATTR {
    const auto* row = weights + id * table.stride(0);
    ForLanes(table.cols(), [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(Set(scale), Weights(lanes, row + i)), x + i); });
  });
}

void SwiGluForwardRow(const float* gate, const float* up, int64_t n, float* y) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(Silu(lanes.Load(gate + i)), lanes.Load(up + i)), y + i); });
}

void ScaleInPlace(float* x, double scale, int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(Set(scale), lanes.Load(x + i)), x + i); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(EmbedRow);
HWY_EXPORT(SwiGluForwardRow);
HWY_EXPORT(ScaleInPlace);

namespace {

// Matrices may be columns of a wider one; other tensors are contiguous and so one row.
Tensor AsMatrix(const Tensor& x) { return x.dims() == 2 ? x : x.View({1, x.size()}); }

}  // namespace

void Embed(Context& ctx, const Batch& batch, const Tensor& table, double scale, const Tensor& x) {
  ctx.threads->For(x.rows(), Grain(x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) HWY_DYNAMIC_DISPATCH(EmbedRow)(table, batch.tokens[static_cast<size_t>(t)], scale, x.Row<float>(t));
  });
}

void SwiGlu(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y) {
  ctx.threads->For(y.rows(), Grain(12 * y.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) HWY_DYNAMIC_DISPATCH(SwiGluForwardRow)(gate.Row<float>(t), up.Row<float>(t), y.cols(), y.Row<float>(t));
  });
}

void KeepRows(Context&, std::span<const int64_t> rows, const Tensor& x) {
  for (size_t i = 0; i < rows.size(); i++)
    if (const auto to = static_cast<int64_t>(i); rows[i] != to) std::copy_n(x.Row<float>(rows[i]), x.cols(), x.Row<float>(to));
}

void Scale(Context& ctx, const Tensor& x, double scale) {
  const Tensor m = AsMatrix(x);
  ctx.threads->For(m.rows(), Grain(m.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) HWY_DYNAMIC_DISPATCH(ScaleInPlace)(m.Row<float>(t), scale, m.cols());
  });
}

void Zero(Context& ctx, const Tensor& x) {
  const Tensor m = AsMatrix(x);
  ctx.threads->For(m.rows(), Grain(m.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) std::memset(m.Row<float>(t), 0, static_cast<size_t>(m.cols()) * sizeof(float));
  });
}

}  // namespace bamba::cpu
#endif
