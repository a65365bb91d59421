#include <algorithm>

#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {

void CausalConvSilu(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const MambaState& state, const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const std::vector<T> taps = Values<T>(w), b = Values<T>(bias);
    const int64_t channels = w.shape(0), d_conv = w.shape(2);
    for (const Sequence& s : batch.sequences) {
      const Tensor ring = s.slot >= 0 && state.conv ? state.conv.At(s.slot) : Tensor();
      CHECK_MSG(s.position == 0 || d_conv == 1 || ring, "a sequence continues at {} without a conv state", s.position);
      for (int64_t t = s.position; t < s.position + s.rows; t++) {
        T* yt = y.Row<T>(s.row + t - s.position);
        for (int64_t c = 0; c < channels; c++) {
          T sum = bias ? b[c] : 0;
          for (int64_t k = 0; k < d_conv; k++) {
            const int64_t from = t - d_conv + 1 + k;
            if (from < 0) continue;
            const T* xt = from < s.position ? ring.Row<T>(from % ring.rows()) : x.Row<T>(s.row + from - s.position);
            sum += taps[c * d_conv + k] * xt[c];
          }
          yt[c] = Silu(sum);
        }
        // Now nobody needs the token whose place this one takes: it lies at least d_conv − 1 back.
        if (ring && ring.rows() > 0) std::copy_n(x.Row<T>(s.row + t - s.position), channels, ring.Row<T>(t % ring.rows()));
      }
    }
  });
}

void CausalConvSiluBackward(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const Tensor& dy, const Tensor& dx,
                            const Tensor& dw, const Tensor& dbias) {
  CheckReal(ctx);
  const std::vector<double> taps = Values<double>(w), b = Values<double>(bias);
  const int64_t channels = w.shape(0), d_conv = w.shape(2);
  for (const Sequence& s : batch.sequences) {
    for (int64_t t = 0; t < s.rows; t++) std::fill_n(dx.Row<double>(s.row + t), channels, 0.0);
    for (int64_t t = 0; t < s.rows; t++)
      for (int64_t c = 0; c < channels; c++) {
        const int64_t first = std::max<int64_t>(0, d_conv - 1 - t);  // the first tap inside the sequence
        double sum = bias ? b[c] : 0;
        for (int64_t k = first; k < d_conv; k++) sum += taps[c * d_conv + k] * x.Row<double>(s.row + t - d_conv + 1 + k)[c];
        const double dsum = dy.Row<double>(s.row + t)[c] * SiluDerivative(sum);
        for (int64_t k = first; k < d_conv; k++) {
          const int64_t from = s.row + t - d_conv + 1 + k;
          dx.Row<double>(from)[c] += dsum * taps[c * d_conv + k];
          if (dw) dw.as<double>()[c * d_conv + k] += dsum * x.Row<double>(from)[c];
        }
        if (dbias) dbias.as<double>()[c] += dsum;
      }
  }
}

}  // namespace bamba::ref
