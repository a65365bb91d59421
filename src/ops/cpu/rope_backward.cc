#include <cmath>
#include <vector>

#include "ops/op_table.h"

namespace bamba::cpu {

void RopeBackward(Context& ctx, const Tensor& dx, const RopeShape& shape, const Batch& batch) {
  constexpr int64_t kRows = 16;
  const int64_t half = shape.dims / 2;
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; j++) frequency[static_cast<size_t>(j)] = std::pow(shape.theta, -2.0 * static_cast<double>(j) / static_cast<double>(shape.dims));
  for (const Sequence& s : batch.sequences) {
    ctx.threads->For(s.rows, kRows, [&](int64_t begin, int64_t end, int) {
      std::vector<float> cosine(static_cast<size_t>(half)), sine(static_cast<size_t>(half));
      for (int64_t t = begin; t < end; t++) {
        for (size_t j = 0; j < frequency.size(); j++) {
          const double angle = static_cast<double>(s.position + t) * frequency[j];
          cosine[j] = static_cast<float>(std::cos(angle)), sine[j] = static_cast<float>(std::sin(angle));
        }
        for (int64_t h = 0; h < shape.heads; h++) {
          float* low = dx.Row<float>(s.row + t) + h * shape.head_dim;
          float* high = low + half;
          for (size_t j = 0; j < frequency.size(); j++) {
            const float a = low[j], b = high[j];
            low[j] = a * cosine[j] + b * sine[j];
            high[j] = b * cosine[j] - a * sine[j];
          }
        }
      }
    });
  }
}

}  // namespace bamba::cpu
