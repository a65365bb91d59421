#include <algorithm>

#include "model/bamba.h"

namespace bamba {
namespace {

// Logits of this many rows exist at a time in a loss: enough for the matrix product, small beside the activations.
constexpr int64_t kLossRows = 128;

}  // namespace

void Logits(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, const Tensor& logits) {
  ops::Linear(ctx, hidden, w.head, logits);
  ops::Scale(ctx, logits, c.logits_multiplier);
}

void NegativeLogLikelihood(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, std::span<const int32_t> labels, const Tensor& nll) {
  for (int64_t row = 0; row < hidden.rows(); row += kLossRows) {
    Frame frame(ctx);
    const int64_t rows = std::min(kLossRows, hidden.rows() - row);
    Tensor logits = ctx.WideTemp({rows, c.vocab});
    Logits(ctx, c, w, hidden.Rows(row, rows), logits);
    ops::CrossEntropy(ctx, logits, labels.subspan(static_cast<size_t>(row), static_cast<size_t>(rows)), nll.Rows(row, rows));
  }
}

void LossBackward(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, std::span<const int32_t> labels, double scale, const Tensor& nll,
                  const Tensor& dhidden, Weights& grads) {
  for (int64_t row = 0; row < hidden.rows(); row += kLossRows) {
    Frame frame(ctx);
    const int64_t rows = std::min(kLossRows, hidden.rows() - row);
    const auto part = labels.subspan(static_cast<size_t>(row), static_cast<size_t>(rows));
    Tensor logits = ctx.WideTemp({rows, c.vocab});
    Logits(ctx, c, w, hidden.Rows(row, rows), logits);
    ops::CrossEntropy(ctx, logits, part, nll.Rows(row, rows));
    ops::CrossEntropyBackward(ctx, logits, part, scale * c.logits_multiplier, logits);
    ops::LinearBackward(ctx, hidden.Rows(row, rows), w.head, logits, Into::kWrite, dhidden.Rows(row, rows), grads.head);
  }
}

}  // namespace bamba
