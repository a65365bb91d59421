#include "ops/op_table.h"

namespace bamba::cpu {
namespace {

float At(const Tensor& t, int64_t i) {
  float value;
  Convert(static_cast<const char*>(t.data()) + static_cast<size_t>(i) * SizeOf(t.dtype()), t.dtype(), &value, Dtype::kF32, 1);
  return value;
}

}  // namespace

void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw) {
  const int64_t rows = x.rows(), in = x.cols(), out = dy.cols();
  if (dx) {
    ctx.threads->For(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++) {
        for (int64_t k = 0; k < in; k++) {
          float sum = into == Into::kAdd ? dx.Row<float>(t)[k] : 0;
          for (int64_t n = 0; n < out; n++) sum += dy.Row<float>(t)[n] * At(w.weight, n * w.weight.stride(0) + k);
          dx.Row<float>(t)[k] = sum;
        }
      }
    });
  }
  ctx.threads->For(out, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; n++) {
      for (int64_t t = 0; t < rows; t++) {
        const float g = dy.Row<float>(t)[n];
        if (dw.weight)
          for (int64_t k = 0; k < in; k++) dw.weight.Row<float>(n)[k] += g * x.Row<float>(t)[k];
        if (dw.bias) dw.bias.as<float>()[n] += g;
      }
    }
  });
}

}  // namespace bamba::cpu
