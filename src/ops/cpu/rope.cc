#include <algorithm>
#include <cmath>

#include "ops/cpu/rows.h"
#include "ops/op_table.h"

namespace bamba::cpu {
namespace {

constexpr int64_t kPairs = 64;  // turned at a time: their angles are shared by the heads of a row

// Turns pairs (x[j], x[j + half]) of every head by the angles whose cosines and sines are given.
void TurnPairs(float* x, const RopeShape& shape, int64_t pairs, const float* cosine, const float* sine) {
  const int64_t half = shape.dims / 2;
  for (int64_t h = 0; h < shape.heads; h++) {
    float *a = x + h * shape.head_dim, *b = a + half;
    for (int64_t j = 0; j < pairs; j++) {
      const float u = a[j], v = b[j];
      a[j] = u * cosine[j] - v * sine[j];
      b[j] = v * cosine[j] + u * sine[j];
    }
  }
}

// Rotates rows [first, last) of `sequence`. Angles are taken in double: in f32 a position of a million would leave a tenth of a radian in doubt.
void RotateRows(const Tensor& x, const RopeShape& shape, const Sequence& sequence, int64_t first, int64_t last) {
  const int64_t half = shape.dims / 2;
  double frequency[kPairs];
  float cosine[kPairs], sine[kPairs];
  for (int64_t begin = 0; begin < half; begin += kPairs) {
    const int64_t pairs = std::min(kPairs, half - begin);
    for (int64_t j = 0; j < pairs; j++) frequency[j] = std::pow(shape.theta, -2.0 * static_cast<double>(begin + j) / static_cast<double>(shape.dims));
    for (int64_t t = first; t < last; t++) {
      const double position = static_cast<double>(sequence.position + t - sequence.row);
      for (int64_t j = 0; j < pairs; j++) {
        const double angle = position * frequency[j];
        cosine[j] = static_cast<float>(std::cos(angle)), sine[j] = static_cast<float>(std::sin(angle));
      }
      TurnPairs(x.Row<float>(t) + begin, shape, pairs, cosine, sine);
    }
  }
}

}  // namespace

void Rope(Context& ctx, const Tensor& x, const RopeShape& shape, const Batch& batch) {
  ctx.threads->For(x.rows(), Grain(shape.dims * (20 + 2 * shape.heads)), [&](int64_t begin, int64_t end, int) {
    ForSequences(batch, begin, end, [&](const Sequence& sequence, int64_t first, int64_t last) { RotateRows(x, shape, sequence, first, last); });
  });
}

}  // namespace bamba::cpu
