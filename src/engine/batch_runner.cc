#include "engine/batch_runner.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace bamba {
namespace {

// On an accelerator a step of one row for each sequence is replayed as it was once recorded, for a number of rows. Other numbers are padded to one of these, so
// that few recordings serve all.
int64_t ReplayedRows(int64_t rows) {
  const int64_t step = rows <= 8 ? 1 : rows <= 64 ? 8 : 32;
  return (rows + step - 1) / step * step;
}

PoolSize PoolOn(const Model& model, PoolSize pool, const Execution& execution) {
  pool.inputs = ActivationDtype(model, execution);
  return pool;
}

// The token of the largest logit, see Candidates.
int32_t Largest(const Tensor& logits, int64_t row) {
  const float* x = logits.Row<float>(row);
  int64_t best = 0;
  bool finite = true;
  for (int64_t i = 0; i < logits.cols(); i++) {
    finite &= std::isfinite(x[i]);
    if (x[i] > x[best]) best = i;
  }
  return finite ? static_cast<int32_t>(best) : -1;
}

}  // namespace

BatchRunner::BatchRunner(const Model& model, PoolSize pool, BatchSize size, const Execution& execution)
    : model_(model),
      size_(size),
      accelerator_(execution.accelerator),
      runtime_(model, execution, StepWorkspace(model, size.rows, size.scored, execution)),
      pool_(model.config, PoolOn(model, pool, execution), execution.accelerator) {
  Context& ctx = runtime_.context();
  logits_ = ctx.WideTemp({size.scored, model.config.vocab}), hidden_ = ctx.Temp({size.rows, model.config.dim});
  if (accelerator_) {
    const Tensor candidates = ctx.workspace->Take(Dtype::kI32, {2, size.scored, MostCandidates(model.config)});
    candidates_ = candidates.as<int32_t>();
    host_candidates_ = Pinned(accelerator_->AllocateHost(candidates.bytes()), Unpin{accelerator_});
    host_row_ = Pinned(accelerator_->AllocateHost(logits_.Rows(0, 1).bytes()), Unpin{accelerator_});
    host_logits_ = Buffer(logits_.bytes());
  } else {
    likeliest_.resize(static_cast<size_t>(size.scored));
  }
  batch_.tokens.reserve(static_cast<size_t>(size.rows));
  batch_.wanted.emplace().reserve(static_cast<size_t>(size.rows));
  batch_.sequences.reserve(static_cast<size_t>(std::max<int64_t>(pool.slots, accelerator_ ? size.rows : 0)));
  sequences_.reserve(static_cast<size_t>(pool.slots));
}

BatchRunner::~BatchRunner() {
  if (accelerator_) accelerator_->ForgetReplays();  // they hold this one's addresses
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

// Makes a step of one scored row for each sequence one that can be replayed, with sequences that have no state. False where the batch is of another kind.
bool BatchRunner::Pad() {
  if (!accelerator_ || runtime_.context().observer || batch_.rows() == 0) return false;
  const auto one_row = [](const Sequence& s) { return s.rows == 1; };
  if (std::ssize(*batch_.wanted) != batch_.rows() || !std::all_of(batch_.sequences.begin(), batch_.sequences.end(), one_row)) return false;
  const int64_t rows = ReplayedRows(batch_.rows());
  if (rows > std::min(size_.scored, size_.rows)) return batch_.rows() <= size_.scored;
  for (int64_t row = batch_.rows(); row < rows; row++) {
    batch_.tokens.push_back(0);
    batch_.sequences.push_back({.row = row, .rows = 1});
    batch_.wanted->push_back(row);
  }
  return true;
}

// Hidden states of the scored rows, logits of as many of them as there is room for, on an accelerator also so many candidates of each. The number of those
// rows.
int64_t BatchRunner::Compute(int64_t candidates) {
  Context& ctx = runtime_.context();
  const int64_t scored = std::ssize(*batch_.wanted), now = std::min(scored, size_.scored);
  const bool replays = Pad();
  const int64_t padded = replays ? std::ssize(*batch_.wanted) : scored, padded_now = std::min(padded, size_.scored);
  const auto step = [&] {
    Forward(ctx, model_.config, model_.weights, batch_, pool_.states(), hidden_.Rows(0, padded));
    if (padded_now > 0) Logits(ctx, model_.config, model_.weights, hidden_.Rows(0, padded_now), logits_.Rows(0, padded_now));
    if (!accelerator_ || candidates == 0 || padded_now == 0) return;
    // One candidate needs no logit.
    if (candidates == 1)
      accelerator_->ArgMax(logits_.Rows(0, padded_now), candidates_);
    else
      accelerator_->Top(logits_.Rows(0, padded_now), candidates, candidates_, reinterpret_cast<float*>(candidates_) + padded_now * candidates);
  };
  if (replays) {
    ops::Begin(ctx, batch_);
    accelerator_->Replay(static_cast<uint64_t>(reinterpret_cast<uintptr_t>(this)) >> 4 << 24 ^ static_cast<uint64_t>(padded << 11 | candidates), step);
  } else {
    step();
  }
  for (size_t i = 0; i < sequences_.size(); i++) StatePool::Advance(*sequences_[i], batch_.sequences[i].rows);
  batch_.tokens.clear(), batch_.sequences.clear(), sequences_.clear(), batch_.wanted->clear();
  unscored_row_ = now, unscored_ = scored - now, rows_of_candidates_ = padded_now;
  return now;
}

Tensor BatchRunner::ToHost(const Tensor& logits) {
  if (!accelerator_) return logits;
  const Tensor host(host_logits_.data(), logits.dtype(), {logits.rows(), logits.cols()});
  ops::ToHost(runtime_.context(), logits, host.data());
  return host;
}

Tensor BatchRunner::Run() { return ToHost(logits_.Rows(0, Compute(0))); }

std::span<const int32_t> BatchRunner::RunGreedy() {
  const Candidates likeliest = RunCandidates(1);
  return {likeliest.ids, static_cast<size_t>(likeliest.rows)};
}

Candidates BatchRunner::RunCandidates(int64_t count) {
  CHECK(count >= 0 && count <= (accelerator_ ? MostCandidates(model_.config) : 1));
  const int64_t rows = Compute(count), numbers = rows_of_candidates_ * count;
  if (!accelerator_) {
    for (int64_t i = 0; i < rows && count > 0; i++) likeliest_[static_cast<size_t>(i)] = Largest(logits_, i);
    return {.rows = rows, .count = count, .ids = likeliest_.data()};
  }
  auto* const ids = static_cast<int32_t*>(host_candidates_.get());
  if (numbers > 0) accelerator_->Download(ids, candidates_, static_cast<size_t>(count == 1 ? numbers : 2 * numbers) * sizeof(int32_t));
  return {.rows = rows, .count = count, .ids = ids, .logits = reinterpret_cast<const float*>(ids) + numbers};
}

std::span<const float> BatchRunner::LogitsOf(int64_t row) {
  const Tensor logits = logits_.Rows(row, 1);
  const auto vocab = static_cast<size_t>(logits.cols());
  if (!accelerator_) return {logits.as<float>(), vocab};
  accelerator_->Download(host_row_.get(), logits.data(), logits.bytes());
  return {static_cast<const float*>(host_row_.get()), vocab};
}

Tensor BatchRunner::MoreLogits() {
  const int64_t rows = std::min(unscored_, size_.scored);
  const Tensor logits = logits_.Rows(0, rows);
  if (rows > 0) Logits(runtime_.context(), model_.config, model_.weights, hidden_.Rows(unscored_row_, rows), logits);
  unscored_row_ += rows, unscored_ -= rows;
  return ToHost(logits);
}

}  // namespace bamba
