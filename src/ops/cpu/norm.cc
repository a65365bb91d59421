#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <cmath>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// y = x · rsqrt(mean(x²) + eps) · w[first…]; may be in place.
void NormalizeRow(const float* x, const Tensor& w, int64_t first, int64_t n, double eps, float* y) {
  const float scale = 1 / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + static_cast<float>(eps));
  WithWeights(w, [&](const auto* weights) HWY_ATTR {
    ForLanes(n,
             [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(hn::Mul(Set(scale), lanes.Load(x + i)), Weights(lanes, weights + first + i)), y + i); });
  });
}

void AddRow(const float* x, const float* y, double scale, int64_t n, float* out) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::MulAdd(Set(scale), lanes.Load(y + i), lanes.Load(x + i)), out + i); });
}

void GateRow(const float* y, const float* z, int64_t n, float* out) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(lanes.Load(y + i), Silu(lanes.Load(z + i))), out + i); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(NormalizeRow);
HWY_EXPORT(AddRow);
HWY_EXPORT(GateRow);

void RmsNorm(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& y) {
  ctx.threads->For(x.rows(), Grain(2 * x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) HWY_DYNAMIC_DISPATCH(NormalizeRow)(x.Row<float>(t), w, 0, x.cols(), eps, y.Row<float>(t));
  });
}

void AddRmsNorm(Context& ctx, const Tensor& x, const Tensor& y, double scale, const Tensor& w, double eps, const Tensor& out, const Tensor& u) {
  ctx.threads->For(x.rows(), Grain(3 * x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      HWY_DYNAMIC_DISPATCH(AddRow)(x.Row<float>(t), y.Row<float>(t), scale, x.cols(), out.Row<float>(t));
      HWY_DYNAMIC_DISPATCH(NormalizeRow)(out.Row<float>(t), w, 0, x.cols(), eps, u.Row<float>(t));
    }
  });
}

void GatedRmsNorm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& out) {
  const int64_t size = y.cols() / groups;
  ctx.threads->For(y.rows() * groups, Grain(15 * size), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t t = i / groups, first = i % groups * size;
      float* gated = out.Row<float>(t) + first;
      HWY_DYNAMIC_DISPATCH(GateRow)(y.Row<float>(t) + first, z.Row<float>(t) + first, size, gated);
      HWY_DYNAMIC_DISPATCH(NormalizeRow)(gated, w, first, size, eps, gated);
    }
  });
}

}  // namespace bamba::cpu
#endif
