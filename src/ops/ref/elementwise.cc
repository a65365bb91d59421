#include <algorithm>
#include <limits>

#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {

void Embed(Context& ctx, const Batch& batch, const Tensor& table, double scale, const Tensor& x) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < x.rows(); t++) {
      const std::vector<T> row = Values<T>(table.At(batch.tokens[t]));
      for (int64_t i = 0; i < x.cols(); i++) x.Row<T>(t)[i] = scale * row[i];
    }
  });
}

void EmbedBackward(Context& ctx, const Batch& batch, const Tensor& dx, double scale, const Tensor& dtable) {
  CheckReal(ctx);
  for (int64_t t = 0; dtable && t < dx.rows(); t++)
    for (int64_t i = 0; i < dx.cols(); i++) dtable.Row<double>(batch.tokens[t])[i] += scale * dx.Row<double>(t)[i];
}

void SwiGlu(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < y.rows(); t++)
      for (int64_t i = 0; i < y.cols(); i++) y.Row<T>(t)[i] = Silu(gate.Row<T>(t)[i]) * up.Row<T>(t)[i];
  });
}

void SwiGluBackward(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  CheckReal(ctx);
  for (int64_t t = 0; t < dy.rows(); t++)
    for (int64_t i = 0; i < dy.cols(); i++) {
      const double g = gate.Row<double>(t)[i], u = up.Row<double>(t)[i], d = dy.Row<double>(t)[i];
      dgate.Row<double>(t)[i] = d * u * SiluDerivative(g);
      dup.Row<double>(t)[i] = d * Silu(g);
    }
}

void KeepRows(Context& ctx, std::span<const int64_t> rows, const Tensor& x) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (size_t i = 0; i < rows.size(); i++)
      if (const auto to = static_cast<int64_t>(i); rows[i] != to) std::copy_n(x.Row<T>(rows[i]), x.cols(), x.Row<T>(to));
  });
}

namespace {

template <typename T>
T LogSumExp(const T* x, int64_t n) {
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; i++) max = std::max(max, Real(x[i]));
  T sum = 0;
  for (int64_t i = 0; i < n; i++) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

}  // namespace

void CrossEntropy(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, const Tensor& nll) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < logits.rows(); t++) {
      const T* row = logits.Row<T>(t);
      *nll.Row<T>(t) = labels[t] == ops::kIgnoredLabel ? T(0) : LogSumExp(row, logits.cols()) - row[labels[t]];
    }
  });
}

void CrossEntropyBackward(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, double scale, const Tensor& dlogits) {
  CheckReal(ctx);
  for (int64_t t = 0; t < logits.rows(); t++) {
    const double* row = logits.Row<double>(t);
    double* out = dlogits.Row<double>(t);
    if (labels[t] == ops::kIgnoredLabel) {
      std::fill_n(out, logits.cols(), 0.0);
      continue;
    }
    const double lse = LogSumExp(row, logits.cols());
    for (int64_t i = 0; i < logits.cols(); i++) out[i] = scale * (std::exp(row[i] - lse) - (i == labels[t] ? 1 : 0));
  }
}

void Scale(Context& ctx, const Tensor& x, double scale) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < x.rows(); t++)
      for (int64_t i = 0; i < x.cols(); i++) x.Row<T>(t)[i] *= scale;
  });
}

void Zero(Context& ctx, const Tensor& x) {
  WithNumbers(ctx, [&]<typename T>(T) {
    for (int64_t t = 0; t < x.rows(); t++) std::fill_n(x.Row<T>(t), x.cols(), T(0));
  });
}

}  // namespace bamba::ref
