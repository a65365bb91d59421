#include <algorithm>

#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const std::vector<T> weight = Values<T>(w.weight), bias = Values<T>(w.bias);
    const int64_t in = x.cols(), out = y.cols();
    for (int64_t t = 0; t < x.rows(); t++) {
      const T* xt = x.Row<T>(t);
      for (int64_t o = 0; o < out; o++) {
        const T* row = weight.data() + o * in;
        T sum = 0;
        for (int64_t i = 0; i < in; i++) sum += row[i] * xt[i];
        y.Row<T>(t)[o] = w.bias ? sum + bias[o] : sum;
      }
    }
  });
}

void Linears(Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y) {
  int64_t out = 0;
  for (const LinearWeight& one : w) {
    Linear(ctx, x, one, y.Columns({out, one.weight.rows()}));
    out += one.weight.rows();
  }
}

void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw) {
  CheckReal(ctx);
  const std::vector<double> weight = Values<double>(w.weight);
  const int64_t in = w.weight.cols(), out = w.weight.rows();
  for (int64_t t = 0; t < dy.rows(); t++) {
    const double *dyt = dy.Row<double>(t), *xt = x.Row<double>(t);
    if (dx && into == Into::kWrite) std::fill_n(dx.Row<double>(t), in, 0.0);
    for (int64_t o = 0; o < out; o++) {
      const double* row = weight.data() + o * in;
      for (int64_t i = 0; dx && i < in; i++) dx.Row<double>(t)[i] += dyt[o] * row[i];
      for (int64_t i = 0; dw.weight && i < in; i++) dw.weight.Row<double>(o)[i] += dyt[o] * xt[i];
      if (dw.bias) dw.bias.as<double>()[o] += dyt[o];
    }
  }
}

}  // namespace bamba::ref
