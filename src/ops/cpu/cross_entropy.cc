#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/cross_entropy.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// log Σ_j exp(x_j − top). Vocabularies are long: pieces are summed in f32, their sums in f64, so that the error does not grow with the length.
double LogSumExp(const float* x, int64_t n, float top) {
  constexpr int64_t kPiece = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    Vec sum = hn::Zero(F32());
    ForLanes(std::min(kPiece, n - begin),
             [&](auto lanes, int64_t i) HWY_ATTR { sum = hn::Add(sum, Exp(hn::Sub(LoadOr(Set(-kInfinity), lanes, x + begin + i), Set(top)))); });
    total += static_cast<double>(SumOfLanes(sum));
  }
  return std::log(total);
}

float NegativeLogProbability(const float* logits, int64_t n, int32_t label) {
  const float top = MaxOf(logits, n);
  return static_cast<float>(LogSumExp(logits, n, top) + (static_cast<double>(top) - static_cast<double>(logits[label])));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(NegativeLogProbability);

void CrossEntropy(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, const Tensor& nll) {
  float* out = nll.as<float>();
  ctx.threads->For(logits.rows(), Grain(12 * logits.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      const int32_t label = labels[static_cast<size_t>(t)];
      out[t] = label == ops::kIgnoredLabel ? 0 : HWY_DYNAMIC_DISPATCH(NegativeLogProbability)(logits.Row<float>(t), logits.cols(), label);
    }
  });
}

}  // namespace bamba::cpu
#endif
