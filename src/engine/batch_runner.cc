#include "engine/batch_runner.h"

#include <algorithm>

#include "base/check.h"

namespace bamba {

BatchRunner::BatchRunner(const Model& model, PoolSize pool, BatchSize size, int threads)
    : model_(model), size_(size), pool_(model.config, pool), runtime_(threads, StepWorkspace(model, size.rows, size.scored)) {
  Context& ctx = runtime_.context();
  logits_ = ctx.Temp({size.scored, model.config.vocab}), hidden_ = ctx.Temp({size.rows, model.config.dim});
  batch_.tokens.reserve(static_cast<size_t>(size.rows));
  batch_.wanted.emplace().reserve(static_cast<size_t>(size.rows));
  batch_.sequences.reserve(static_cast<size_t>(pool.slots));
  sequences_.reserve(static_cast<size_t>(pool.slots));
}

void BatchRunner::Add(SequenceState& sequence, std::span<const int32_t> tokens, int64_t scored) {
  const int64_t first = batch_.rows(), rows = static_cast<int64_t>(tokens.size());
  CHECK_MSG(first + rows <= size_.rows && scored <= rows, "{} + {} rows of {}, {} scored", first, rows, size_.rows, scored);
  CHECK_MSG(pool_.Grow(sequence, rows), "no pages for {} tokens at {}", rows, sequence.position);
  batch_.tokens.insert(batch_.tokens.end(), tokens.begin(), tokens.end());
  batch_.sequences.push_back(StatePool::Entry(sequence, first, rows));
  sequences_.push_back(&sequence);
  for (int64_t row = first + rows - scored; row < first + rows; row++) batch_.wanted->push_back(row);
}

Tensor BatchRunner::Run() {
  Context& ctx = runtime_.context();
  Forward(ctx, model_.config, model_.weights, batch_, pool_.states(), hidden_.Rows(0, static_cast<int64_t>(batch_.wanted->size())));
  for (size_t i = 0; i < sequences_.size(); i++) StatePool::Advance(*sequences_[i], batch_.sequences[i].rows);

  const auto scored = static_cast<int64_t>(batch_.wanted->size());
  batch_.tokens.clear(), batch_.sequences.clear(), sequences_.clear(), batch_.wanted->clear();
  unscored_row_ = 0, unscored_ = scored;
  return MoreLogits();
}

Tensor BatchRunner::MoreLogits() {
  const int64_t rows = std::min(unscored_, size_.scored);
  const Tensor logits = logits_.Rows(0, rows);
  if (rows > 0) Logits(runtime_.context(), model_.config, model_.weights, hidden_.Rows(unscored_row_, rows), logits);
  unscored_row_ += rows, unscored_ -= rows;
  return logits;
}

}  // namespace bamba
