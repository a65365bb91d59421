#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/conv_backward.cc"
#include "hwy/foreach_target.h"
#include "ops/cpu/lanes-inl.h"
#include "ops/cpu/parameter_gradients.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// Row t of a sequence, n channels: with g = dy_t silu'(bias + Σ_k w_k x_{t−reach+k}), adds w_k g to dx_{t−reach+k} (writing row t itself, which no earlier row
// has reached), g x_{t−reach+k} to dw_k and g to dbias. x and dx point at row t; w and dw [reach + 1, channels].
void ConvRow(const float* x, int64_t x_row, const float* w, const float* bias, int64_t channels, int64_t reach, int64_t t, const float* dy, float* dx,
             int64_t dx_row, float* dw, float* dbias, int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    Vec sum = lanes.Load(bias + i);
    const int64_t first = reach > t ? reach - t : 0;  // earlier taps meet the zeros before the sequence
    for (int64_t k = first; k <= reach; k++) sum = hn::MulAdd(lanes.Load(w + k * channels + i), lanes.Load(x + (k - reach) * x_row + i), sum);
    const Vec g = hn::Mul(lanes.Load(dy + i), Logistic(sum).SiluSlope(sum));
    lanes.Store(hn::Zero(F32()), dx + i);
    for (int64_t k = first; k <= reach; k++) {
      float* to = dx + (k - reach) * dx_row + i;
      lanes.Store(hn::MulAdd(lanes.Load(w + k * channels + i), g, lanes.Load(to)), to);
      lanes.Store(hn::MulAdd(g, lanes.Load(x + (k - reach) * x_row + i), lanes.Load(dw + k * channels + i)), dw + k * channels + i);
    }
    lanes.Store(hn::Add(lanes.Load(dbias + i), g), dbias + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(ConvRow);

// Threads share channels, so that every gradient of a weight sums its rows in order.
void CausalConvSiluBackward(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const Tensor& dy, const Tensor& dx,
                            const Tensor& dw, const Tensor& dbias) {
  constexpr int64_t kStrip = 64;
  const auto conv_row = HWY_DYNAMIC_DISPATCH(ConvRow);
  const int64_t channels = x.cols(), width = w.shape(2);
  const std::vector<float> by_channel = AsFloats(w);
  std::vector<float> weight(by_channel.size()), offset = bias ? AsFloats(bias) : std::vector<float>(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; c++)
    for (int64_t k = 0; k < width; k++) weight[static_cast<size_t>(k * channels + c)] = by_channel[static_cast<size_t>(c * width + k)];
  std::vector<float> weight_sum(weight.size()), offset_sum(offset.size());

  ctx.threads->For(channels, kStrip, [&](int64_t begin, int64_t end, int) {
    for (const Sequence& s : batch.sequences) {
      for (int64_t t = 0; t < s.rows; t++) {
        conv_row(x.Row<float>(s.row + t) + begin, x.stride(0), weight.data() + begin, offset.data() + begin, channels, width - 1, t,
                 dy.Row<float>(s.row + t) + begin, dx.Row<float>(s.row + t) + begin, dx.stride(0), weight_sum.data() + begin, offset_sum.data() + begin,
                 end - begin);
      }
    }
    for (int64_t c = begin; c < end; c++) {
      for (int64_t k = 0; dw && k < width; k++) dw.as<float>()[c * width + k] += weight_sum[static_cast<size_t>(k * channels + c)];
      if (dbias) dbias.as<float>()[c] += offset_sum[static_cast<size_t>(c)];
    }
  });
}

}  // namespace bamba::cpu
#endif
