// Backward of the norms. With r = 1/√(mean x² + eps) and g = dy · w: dx = r (g − x r² mean(g x)), dw = dy x r.
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm_backward.cc"
#include "hwy/foreach_target.h"
#include "ops/cpu/lanes-inl.h"
#include "ops/cpu/parameter_gradients.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// dx += gradient; dw += gradient where it is not null.
void RmsNormRow(const float* x, const float* w, double eps, const float* dy, float* dx, float* dw, int64_t n) {
  const float r = static_cast<float>(1 / std::sqrt(Dot(x, x, n) / static_cast<double>(n) + eps));
  Vec dot = hn::Zero(F32());
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { dot = hn::MulAdd(hn::Mul(lanes.Load(dy + i), lanes.Load(w + i)), lanes.Load(x + i), dot); });
  const Vec along = Set(r * r * SumOfLanes(dot) / static_cast<double>(n)), scale = Set(r);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec xi = lanes.Load(x + i), g = lanes.Load(dy + i);
    lanes.Store(hn::MulAdd(scale, hn::NegMulAdd(xi, along, hn::Mul(g, lanes.Load(w + i))), lanes.Load(dx + i)), dx + i);
    if (dw) lanes.Store(hn::MulAdd(hn::Mul(g, xi), scale, lanes.Load(dw + i)), dw + i);
  });
}

// The norm of v = y · silu(z). v and dv [n] are scratch.
void GatedRmsNormRow(const float* y, const float* z, const float* w, double eps, const float* dout, float* dy, float* dz, float* dw, float* v, float* dv,
                     int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec gate = lanes.Load(z + i);
    lanes.Store(hn::Mul(lanes.Load(y + i), Silu(gate)), v + i);
    lanes.Store(hn::Zero(F32()), dv + i);
  });
  RmsNormRow(v, w, eps, dout, dv, dw, n);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec gate = lanes.Load(z + i), yi = lanes.Load(y + i), g = lanes.Load(dv + i);
    const Logistic sigma(gate);
    lanes.Store(hn::Mul(g, hn::Mul(gate, sigma.at)), dy + i);
    lanes.Store(hn::Mul(hn::Mul(g, yi), sigma.SiluSlope(gate)), dz + i);
  });
}

void ScaledCopy(float scale, const float* x, float* y, int64_t n) { ScaleRow(scale, x, y, n); }

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(GatedRmsNormRow);
HWY_EXPORT(ScaledCopy);

void RmsNormBackward(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& dy, const Tensor& dx, const Tensor& dw) {
  const auto row = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  const std::vector<float> weight = AsFloats(w);
  SumOverRows(*ctx.threads, x.rows(), dw, [&](int64_t begin, int64_t end, float* sum) {
    for (int64_t t = begin; t < end; t++) row(x.Row<float>(t), weight.data(), eps, dy.Row<float>(t), dx.Row<float>(t), sum, x.cols());
  });
}

void AddRmsNormBackward(Context& ctx, const Tensor& out, double scale, const Tensor& w, double eps, const Tensor& du, const Tensor& dout, const Tensor& dy,
                        const Tensor& dw) {
  RmsNormBackward(ctx, out, w, eps, du, dout, dw);
  const auto copy = HWY_DYNAMIC_DISPATCH(ScaledCopy);
  ctx.threads->For(out.rows(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) copy(static_cast<float>(scale), dout.Row<float>(t), dy.Row<float>(t), out.cols());
  });
}

void GatedRmsNormBackward(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& dout, const Tensor& dy,
                          const Tensor& dz, const Tensor& dw) {
  const auto row = HWY_DYNAMIC_DISPATCH(GatedRmsNormRow);
  const std::vector<float> weight = AsFloats(w);
  const int64_t n = y.cols() / groups;
  SumOverRows(*ctx.threads, y.rows(), dw, [&](int64_t begin, int64_t end, float* sum) {
    std::vector<float> scratch(static_cast<size_t>(2 * n));
    for (int64_t t = begin; t < end; t++) {
      for (int64_t c = 0; c < y.cols(); c += n) {
        row(y.Row<float>(t) + c, z.Row<float>(t) + c, weight.data() + c, eps, dout.Row<float>(t) + c, dy.Row<float>(t) + c, dz.Row<float>(t) + c,
            sum ? sum + c : nullptr, scratch.data(), scratch.data() + n, n);
      }
    }
  });
}

}  // namespace bamba::cpu
#endif
