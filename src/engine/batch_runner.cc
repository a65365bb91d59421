#include "engine/batch_runner.h"

#include <algorithm>

#include "base/check.h"

namespace bamba {
namespace {

// On an accelerator a step of one row for each sequence is replayed as it was once recorded, for a number of rows. Other numbers are padded to one of these, so
// that few recordings serve all.
int64_t ReplayedRows(int64_t rows) {
  const int64_t step = rows <= 8 ? 1 : rows <= 64 ? 8 : 32;
  return (rows + step - 1) / step * step;
}

bool AnyLogprobs(std::span<const Choice> choices) {
  return std::any_of(choices.begin(), choices.end(), [](const Choice& choice) { return choice.top_logprobs >= 0; });
}

PoolSize PoolOn(const Model& model, PoolSize pool, const Execution& execution) {
  pool.inputs = ActivationDtype(model, execution);
  return pool;
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
  const auto scored = static_cast<size_t>(size.scored), tokens_bytes = scored * sizeof(int32_t);
  if (accelerator_) {
    device_tokens_ = ctx.workspace->Take(Dtype::kI32, {size.scored}).as<int32_t>();
    device_parts_ = static_cast<LogprobParts*>(ctx.workspace->Take(Dtype::kI32, {size.scored, sizeof(LogprobParts) / sizeof(int32_t)}).data());
    host_parts_ = Pinned(accelerator_->AllocateHost(2 * scored * sizeof(LogprobParts)), Unpin{accelerator_});
    queued_[0].parts = static_cast<LogprobParts*>(host_parts_.get()), queued_[1].parts = queued_[0].parts + size.scored;
    host_tokens_ = Pinned(accelerator_->AllocateHost(2 * tokens_bytes), Unpin{accelerator_});
    host_row_ = Pinned(accelerator_->AllocateHost(logits_.Rows(0, 1).bytes()), Unpin{accelerator_});
    host_logits_ = Buffer(logits_.bytes());
    batch_.chosen = device_tokens_;
  } else {
    cpu_tokens_.resize(2 * scored);
    for (Queued& queued : queued_) queued.logprobs.resize(scored);
  }
  int32_t* const tokens = accelerator_ ? static_cast<int32_t*>(host_tokens_.get()) : cpu_tokens_.data();
  queued_[0].tokens = tokens, queued_[1].tokens = tokens + size.scored;
  batch_.choices.reserve(static_cast<size_t>(size.scored));
  batch_.tokens.reserve(static_cast<size_t>(size.rows));
  batch_.wanted.emplace().reserve(static_cast<size_t>(size.rows));
  batch_.sequences.reserve(static_cast<size_t>(std::max<int64_t>(pool.slots, accelerator_ ? size.rows : 0)));
  sequences_.reserve(static_cast<size_t>(pool.slots));
}

BatchRunner::~BatchRunner() {
  if (accelerator_) accelerator_->ForgetReplays();  // they hold this one's addresses
}

void BatchRunner::Add(SequenceState& sequence, std::span<const int32_t> tokens, int64_t scored) { AddRows(sequence, tokens, scored, false); }

void BatchRunner::AddChosen(SequenceState& sequence, int64_t row) {
  CHECK_MSG(queued_count_ > 0, "no batch has been queued");
  const Queued& last = queued_[(queued_count_ - 1) % 2];
  CHECK_MSG(row >= 0 && row < last.rows, "row {} of {}", row, last.rows);
  const int32_t token = accelerator_ ? static_cast<int32_t>(-1 - row) : std::max(0, last.tokens[row]);
  AddRows(sequence, {&token, 1}, 1, !accelerator_ && last.tokens[row] < 0);
}

// `lost`: read as if there were no state.
void BatchRunner::AddRows(SequenceState& sequence, std::span<const int32_t> tokens, int64_t scored, bool lost) {
  const int64_t first = batch_.rows(), rows = static_cast<int64_t>(tokens.size());
  CHECK_MSG(first + rows <= size_.rows && scored <= rows, "{} + {} rows of {}, {} scored", first, rows, size_.rows, scored);
  CHECK_MSG(pool_.Grow(sequence, rows), "no pages for {} tokens at {}", rows, sequence.position);
  batch_.tokens.insert(batch_.tokens.end(), tokens.begin(), tokens.end());
  batch_.sequences.push_back(lost ? Sequence{.row = first, .rows = rows} : StatePool::Entry(sequence, first, rows));
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

// Hidden states of the scored rows, logits of as many of them as there is room for, and on an accelerator their tokens where the batch has choices. The number
// of those rows.
int64_t BatchRunner::Compute() {
  Context& ctx = runtime_.context();
  const int64_t scored = std::ssize(*batch_.wanted), now = std::min(scored, size_.scored);
  const bool replays = Pad();
  const int64_t padded = replays ? std::ssize(*batch_.wanted) : scored, padded_now = std::min(padded, size_.scored);
  const bool chooses = accelerator_ && !batch_.choices.empty();
  if (chooses) batch_.choices.resize(static_cast<size_t>(padded));
  const bool logprobs = AnyLogprobs(batch_.choices);
  const bool edits = std::any_of(batch_.choices.begin(), batch_.choices.end(), [](const Choice& choice) { return choice.edits > 0; });
  const bool likeliest = std::all_of(batch_.choices.begin(), batch_.choices.end(), [](const Choice& choice) { return choice.temperature == 0; });
  const auto step = [&] {
    Forward(ctx, model_.config, model_.weights, batch_, pool_.states(), hidden_.Rows(0, padded));
    const Tensor logits = logits_.Rows(0, padded_now);
    if (padded_now > 0) Logits(ctx, model_.config, model_.weights, hidden_.Rows(0, padded_now), logits);
    if (edits) accelerator_->Edit(logits, device_tokens_);
    if (chooses) likeliest ? accelerator_->ArgMax(logits, device_tokens_) : accelerator_->Choose(logits, device_tokens_);
    if (logprobs) accelerator_->Logprobs(logits, device_tokens_, device_parts_);
  };
  if (replays) {
    ops::Begin(ctx, batch_);
    const int kind = (!chooses ? 0 : likeliest ? 1 : 2) + (edits ? 4 : 0) + (logprobs ? 8 : 0) + (AnyTypical(batch_.choices) ? 16 : 0);
    accelerator_->Replay(static_cast<uint64_t>(reinterpret_cast<uintptr_t>(this)) >> 4 << 24 ^ static_cast<uint64_t>(padded << 5 | kind), step);
  } else {
    step();
  }
  for (size_t i = 0; i < sequences_.size(); i++) StatePool::Advance(*sequences_[i], batch_.sequences[i].rows);
  batch_.tokens.clear(), batch_.sequences.clear(), sequences_.clear(), batch_.wanted->clear(), batch_.choices.clear(), batch_.edits = {};
  unscored_row_ = now, unscored_ = scored - now;
  return now;
}

Tensor BatchRunner::ToHost(const Tensor& logits) {
  if (!accelerator_) return logits;
  const Tensor host(host_logits_.data(), logits.dtype(), {logits.rows(), logits.cols()});
  ops::ToHost(runtime_.context(), logits, host.data());
  return host;
}

Tensor BatchRunner::Run() { return ToHost(logits_.Rows(0, Compute())); }

void BatchRunner::Queue(std::span<const Choice> choices, std::span<const LogitEdit> edits) {
  CHECK_MSG(queued_count_ - arrived_count_ < 2, "{} batches are queued", queued_count_ - arrived_count_);
  CHECK_MSG(choices.size() == batch_.wanted->size() && std::ssize(choices) <= size_.scored, "{} choices for {} rows", choices.size(), batch_.wanted->size());
  if (accelerator_) batch_.choices.assign(choices.begin(), choices.end()), batch_.edits = edits;
  Queued& queued = queued_[queued_count_ % 2];
  queued.rows = Compute();
  if (accelerator_) {
    accelerator_->DownloadLater(queued.tokens, device_tokens_, static_cast<size_t>(queued.rows) * sizeof(int32_t));
    if (AnyLogprobs(choices)) accelerator_->DownloadLater(queued.parts, device_parts_, static_cast<size_t>(queued.rows) * sizeof(LogprobParts));
    queued.arrived = accelerator_->Mark();
  } else {
    const auto vocab = static_cast<size_t>(logits_.cols());
    const int32_t* const before = queued_[(queued_count_ + 1) % 2].tokens;
    for (int64_t i = 0; i < queued.rows; i++) {
      const Choice& choice = choices[static_cast<size_t>(i)];
      const std::span<const float> row(logits_.Row<float>(i), vocab);
      const int32_t awaited = choice.awaited >= 0 ? std::max(0, before[choice.awaited]) : -1;
      queued.tokens[i] =
          Sampler::Choose(choice, edits.subspan(static_cast<size_t>(choice.first_edit), static_cast<size_t>(choice.edits)), awaited, row, sampler_space_);
      if (choice.top_logprobs >= 0 && queued.tokens[i] >= 0) queued.logprobs[static_cast<size_t>(i)] = Logprobs(row, queued.tokens[i], choice.top_logprobs);
    }
  }
  queued_count_++;
}

std::span<const int32_t> BatchRunner::Arrive() {
  CHECK_MSG(arrived_count_ < queued_count_, "all of {} batches have arrived", queued_count_);
  const Queued& queued = queued_[arrived_count_++ % 2];
  if (accelerator_) accelerator_->WaitFor(queued.arrived);
  return {queued.tokens, static_cast<size_t>(queued.rows)};
}

TokenLogprobs BatchRunner::LogprobsOf(int64_t row, int64_t top) const {
  const Queued& arrived = queued_[(arrived_count_ + 1) % 2];
  return accelerator_ ? Logprobs(arrived.parts[row], arrived.tokens[row], std::min(top, logits_.cols())) : arrived.logprobs[static_cast<size_t>(row)];
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
