#include "ops/op_table.h"

namespace bamba::cpu {

// Threads share columns, so that every row of the table sums its tokens in the order of the batch.
void EmbedBackward(Context& ctx, const Batch& batch, const Tensor& dx, double scale, const Tensor& dtable) {
  constexpr int64_t kStrip = 64;
  const float factor = static_cast<float>(scale);
  ctx.threads->For(dx.cols(), kStrip, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < dx.rows(); t++) {
      const float* from = dx.Row<float>(t);
      float* to = dtable.Row<float>(batch.tokens[static_cast<size_t>(t)]);
      for (int64_t i = begin; i < end; i++) to[i] += factor * from[i];
    }
  });
}

}  // namespace bamba::cpu
