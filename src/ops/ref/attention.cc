#include <algorithm>
#include <limits>

#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {
namespace {

// Turns each row's heads by direction · position · theta^(−2j/dims).
template <typename T>
void Rotate(const Tensor& x, const RopeShape& shape, const Batch& batch, double direction) {
  const int64_t half = shape.dims / 2;
  for (const Sequence& s : batch.sequences)
    for (int64_t t = 0; t < s.rows; t++)
      for (int64_t h = 0; h < shape.heads; h++)
        for (int64_t j = 0; j < half; j++) {
          const double power = -2.0 * static_cast<double>(j) / static_cast<double>(shape.dims);
          const double angle = direction * static_cast<double>(s.position + t) * std::pow(shape.theta, power);
          const double cosine = std::cos(angle), sine = std::sin(angle);
          T* head = x.Row<T>(s.row + t) + h * shape.head_dim;
          const T a = head[j], b = head[j + half];
          head[j] = a * cosine - b * sine;
          head[j + half] = b * cosine + a * sine;
        }
}

// Where the key (or value) of one token of a sequence lies for one head: in a row of the batch, or, before those, in the pages.
template <typename T>
T* PageEntry(const Tensor& pages, const Sequence& s, int64_t token, int64_t kv_head) {
  return pages.At(s.pages[token / kKvBlock]).At(token % kKvBlock).Row<T>(kv_head);
}

template <typename T>
const T* Entry(const Tensor& rows, const Tensor& pages, const Sequence& s, int64_t token, int64_t kv_head, int64_t head_dim) {
  if (token < s.position) return PageEntry<T>(pages, s, token, kv_head);
  return rows.Row<T>(s.row + token - s.position) + kv_head * head_dim;
}

// Weights of keys 0 … t for one query: softmax(scale q·k).
template <typename T>
std::vector<T> AttentionWeights(const T* q, const Tensor& k, const Tensor& pages, const Sequence& s, int64_t t, int64_t kv_head, const AttentionShape& shape) {
  std::vector<T> weights;
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t from = 0; from <= t; from++) {
    const T* key = Entry<T>(k, pages, s, from, kv_head, shape.head_dim);
    T dot = 0;
    for (int64_t i = 0; i < shape.head_dim; i++) dot += q[i] * key[i];
    weights.push_back(shape.scale * dot);
    max = std::max(max, Real(weights.back()));
  }
  T sum = 0;
  for (T& w : weights) sum += w = std::exp(w - max);
  for (T& w : weights) w /= sum;
  return weights;
}

}  // namespace

void Rope(Context& ctx, const Tensor& x, const RopeShape& shape, const Batch& batch) {
  WithNumbers(ctx, [&]<typename T>(T) { Rotate<T>(x, shape, batch, 1); });
}

void RopeBackward(Context& ctx, const Tensor& dx, const RopeShape& shape, const Batch& batch) {
  CheckReal(ctx);
  Rotate<double>(dx, shape, batch, -1);
}

void Attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const KvPages& kv,
               const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const int64_t dim = shape.head_dim;
    for (const Sequence& s : batch.sequences)
      for (int64_t t = s.position; t < s.position + s.rows; t++) {
        const int64_t row = s.row + t - s.position;
        for (int64_t g = 0; s.slot >= 0 && g < shape.kv_heads; g++) {
          std::copy_n(k.Row<T>(row) + g * dim, dim, PageEntry<T>(kv.k, s, t, g));
          std::copy_n(v.Row<T>(row) + g * dim, dim, PageEntry<T>(kv.v, s, t, g));
        }
        for (int64_t h = 0; h < shape.heads; h++) {
          const int64_t g = h / (shape.heads / shape.kv_heads);
          const std::vector<T> weights = AttentionWeights(q.Row<T>(row) + h * dim, k, kv.k, s, t, g, shape);
          T* out = y.Row<T>(row) + h * dim;
          std::fill_n(out, dim, T(0));
          for (int64_t from = 0; from <= t; from++) {
            const T* value = Entry<T>(v, kv.v, s, from, g, dim);
            for (int64_t i = 0; i < dim; i++) out[i] += weights[from] * value[i];
          }
        }
      }
  });
}

// With w = softmax(scale q·k), y = Σ_s w_s v_s:  dv_s = w_s dy;  the score's gradient is e_s = w_s (dy·v_s − dy·y), so dq = scale Σ_s e_s k_s, dk_s = scale e_s
// q.
void AttentionBackward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const Tensor& y,
                       const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  CheckReal(ctx);
  const int64_t dim = shape.head_dim;
  for (int64_t row = 0; row < q.rows(); row++) {
    std::fill_n(dq.Row<double>(row), dq.cols(), 0.0);
    std::fill_n(dk.Row<double>(row), dk.cols(), 0.0);
    std::fill_n(dv.Row<double>(row), dv.cols(), 0.0);
  }
  const auto dot = [dim](const double* a, const double* b) {
    double sum = 0;
    for (int64_t i = 0; i < dim; i++) sum += a[i] * b[i];
    return sum;
  };
  for (const Sequence& s : batch.sequences)
    for (int64_t t = 0; t < s.rows; t++)
      for (int64_t h = 0; h < shape.heads; h++) {
        const int64_t g = h / (shape.heads / shape.kv_heads), at = h * dim, kv_at = g * dim;
        const double *query = q.Row<double>(s.row + t) + at, *dout = dy.Row<double>(s.row + t) + at;
        double* dquery = dq.Row<double>(s.row + t) + at;
        const std::vector<double> weights = AttentionWeights(query, k, {}, s, t, g, shape);
        const double mean = dot(dout, y.Row<double>(s.row + t) + at);
        for (int64_t from = 0; from <= t; from++) {
          const double *key = k.Row<double>(s.row + from) + kv_at, *value = v.Row<double>(s.row + from) + kv_at;
          const double dscore = shape.scale * weights[from] * (dot(dout, value) - mean);
          for (int64_t i = 0; i < dim; i++) {
            dquery[i] += dscore * key[i];
            dk.Row<double>(s.row + from)[kv_at + i] += dscore * query[i];
            dv.Row<double>(s.row + from)[kv_at + i] += weights[from] * dout[i];
          }
        }
      }
}

}  // namespace bamba::ref
