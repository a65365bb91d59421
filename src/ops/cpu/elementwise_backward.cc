// Backward of SwiGlu and of the cross-entropy: each row by itself.
#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise_backward.cc"
#include "hwy/foreach_target.h"
#include "ops/cpu/activations-inl.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

void SwiGluRow(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec x = lanes.Load(gate + i), g = lanes.Load(dy + i);
    const Logistic sigma(x);
    lanes.Store(hn::Mul(hn::Mul(g, lanes.Load(up + i)), sigma.SiluSlope(x)), dgate + i);
    lanes.Store(hn::Mul(g, hn::Mul(x, sigma.at)), dup + i);
  });
}

// to = scale · softmax(logits); may be in place.
void SoftmaxRow(const float* logits, float scale, float* to, int64_t n) {
  const Vec top = Set(MaxOf(logits, n));
  Vec sum = hn::Zero(F32());
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec e = Exp(hn::Sub(lanes.Load(logits + i), top));
    lanes.Store(e, to + i);
    sum = hn::Add(sum, lanes.Keep(e));
  });
  ScaleRow(scale / SumOfLanes(sum), to, to, n);
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(SwiGluRow);
HWY_EXPORT(SoftmaxRow);

void SwiGluBackward(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  const auto row = HWY_DYNAMIC_DISPATCH(SwiGluRow);
  ctx.threads->For(gate.rows(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) row(gate.Row<float>(t), up.Row<float>(t), dy.Row<float>(t), dgate.Row<float>(t), dup.Row<float>(t), gate.cols());
  });
}

void CrossEntropyBackward(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, double scale, const Tensor& dlogits) {
  const auto softmax = HWY_DYNAMIC_DISPATCH(SoftmaxRow);
  ctx.threads->For(logits.rows(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      float* to = dlogits.Row<float>(t);
      const int32_t label = labels[static_cast<size_t>(t)];
      if (label == ops::kIgnoredLabel) {
        std::fill(to, to + dlogits.cols(), 0.0f);
        continue;
      }
      softmax(logits.Row<float>(t), static_cast<float>(scale), to, logits.cols());
      to[label] -= static_cast<float>(scale);
    }
  });
}

}  // namespace bamba::cpu
#endif
