#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {
namespace {

// 1 / √(mean(v²) + eps)
template <typename T>
T InverseRms(const T* v, int64_t n, double eps) {
  T sum = 0;
  for (int64_t i = 0; i < n; i++) sum += v[i] * v[i];
  return 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
}

// y = v r w with r = InverseRms(v). For one row: add_dv(i, dL/dv_i), and dw += dL/dw. With s = Σ_j dy_j w_j v_j, as dr/dv_i = −r³ v_i / n:
//   dL/dv_i = r w_i dy_i − r³ v_i s / n       dL/dw_i = dy_i v_i r
template <typename AddDv>
void NormRowBackward(const double* v, const double* w, int64_t n, double eps, const double* dy, const AddDv& add_dv, double* dw) {
  const double r = InverseRms(v, n, eps);
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += dy[i] * w[i] * v[i];
  for (int64_t i = 0; i < n; i++) {
    add_dv(i, r * w[i] * dy[i] - r * r * r * v[i] * s / static_cast<double>(n));
    if (dw) dw[i] += dy[i] * v[i] * r;
  }
}

double* DataOrNull(const Tensor& t) { return t ? t.as<double>() : nullptr; }

}  // namespace

void RmsNorm(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const std::vector<T> weight = Values<T>(w);
    for (int64_t t = 0; t < x.rows(); t++) {
      const T* xt = x.Row<T>(t);
      const T r = InverseRms(xt, x.cols(), eps);
      for (int64_t i = 0; i < x.cols(); i++) y.Row<T>(t)[i] = xt[i] * r * weight[i];
    }
  });
}

void RmsNormBackward(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& dy, const Tensor& dx, const Tensor& dw) {
  CheckReal(ctx);
  const std::vector<double> weight = Values<double>(w);
  for (int64_t t = 0; t < x.rows(); t++) {
    double* dxt = dx.Row<double>(t);
    NormRowBackward(
        x.Row<double>(t), weight.data(), x.cols(), eps, dy.Row<double>(t), [&](int64_t i, double d) { dxt[i] += d; }, DataOrNull(dw));
  }
}

void AddRmsNorm(Context& ctx, const Tensor& x, const Tensor& y, double scale, const Tensor& w, double eps, const Tensor& out, const Tensor& u) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < x.rows(); t++)
      for (int64_t i = 0; i < x.cols(); i++) out.Row<T>(t)[i] = x.Row<T>(t)[i] + scale * y.Row<T>(t)[i];
  });
  RmsNorm(ctx, out, w, eps, u);
}

void AddRmsNormBackward(Context& ctx, const Tensor& out, double scale, const Tensor& w, double eps, const Tensor& du, const Tensor& dout, const Tensor& dy,
                        const Tensor& dw) {
  RmsNormBackward(ctx, out, w, eps, du, dout, dw);
  for (int64_t t = 0; t < out.rows(); t++)
    for (int64_t i = 0; i < out.cols(); i++) dy.Row<double>(t)[i] = scale * dout.Row<double>(t)[i];
}

void GatedRmsNorm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& out) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const std::vector<T> weight = Values<T>(w);
    const int64_t size = y.cols() / groups;
    std::vector<T> v(size);
    for (int64_t t = 0; t < y.rows(); t++)
      for (int64_t first = 0; first < y.cols(); first += size) {
        const T *yt = y.Row<T>(t) + first, *zt = z.Row<T>(t) + first;
        for (int64_t i = 0; i < size; i++) v[i] = yt[i] * Silu(zt[i]);
        const T r = InverseRms(v.data(), size, eps);
        for (int64_t i = 0; i < size; i++) out.Row<T>(t)[first + i] = v[i] * r * weight[first + i];
      }
  });
}

void GatedRmsNormBackward(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& dout, const Tensor& dy,
                          const Tensor& dz, const Tensor& dw) {
  CheckReal(ctx);
  const std::vector<double> weight = Values<double>(w);
  const int64_t size = y.cols() / groups;
  std::vector<double> v(size);
  for (int64_t t = 0; t < y.rows(); t++)
    for (int64_t first = 0; first < y.cols(); first += size) {
      const double *yt = y.Row<double>(t) + first, *zt = z.Row<double>(t) + first;
      double *dyt = dy.Row<double>(t) + first, *dzt = dz.Row<double>(t) + first;
      for (int64_t i = 0; i < size; i++) v[i] = yt[i] * Silu(zt[i]);
      const auto add_dv = [&](int64_t i, double dv) {
        dyt[i] = dv * Silu(zt[i]);
        dzt[i] = dv * yt[i] * SiluDerivative(zt[i]);
      };
      NormRowBackward(v.data(), weight.data() + first, size, eps, dout.Row<double>(t) + first, add_dv, dw ? dw.as<double>() + first : nullptr);
    }
}

}  // namespace bamba::ref
