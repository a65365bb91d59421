#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/memory.h"
#include "base/units.h"
#include "engine/stop_filter.h"
#include "text/stream_decoder.h"

namespace bamba {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool HasAttention(const Config& config) { return config.Count(BlockKind::kAttention) > 0; }

// The tokenizer's own end; the config's list where the tokenizer knows none, or where the list has that one and more. (Bamba-9B's config names an id that is an
// ordinary word of its tokenizer.)
std::vector<int32_t> Ends(const Config& config, const Tokenizer* tokenizer) {
  const auto own = tokenizer ? tokenizer->eos() : std::nullopt;
  if (!own || std::find(config.eos.begin(), config.eos.end(), *own) != config.eos.end()) return config.eos;
  return {*own};
}

MemoryPlan FittingPlan(const Model& model, PoolSize size, const std::string& name) {
  MemoryPlan plan = PlanMemory(model, size, StepWorkspace(model, kPrefillRows));
  CheckFits(plan, AvailableMemory(), name);
  return plan;
}

// A sequence of a pool for the time of a scope.
struct Lease {
  StatePool& pool;
  SequenceState sequence;
  explicit Lease(StatePool& from) : pool(from), sequence(from.Allocate().value()) {}
  ~Lease() { pool.Free(sequence); }
};

// From tokens to what the reader sees.
class TextOut {
 public:
  TextOut(const Tokenizer* tokenizer, const std::vector<std::string>& stop, const std::function<void(std::string_view)>& emit, std::string& text)
      : filter_(stop), emit_(emit), text_(text) {
    if (tokenizer) decoder_.emplace(*tokenizer, true);
  }

  bool stopped() const { return filter_.stopped(); }
  void Push(int32_t token) { Show(filter_.Push(decoder_ ? decoder_->Push(token) : " " + std::to_string(token))); }
  void Finish() {
    if (decoder_) Show(filter_.Push(decoder_->Finish()));
    Show(filter_.Finish());
  }

 private:
  void Show(const std::string& piece) {
    if (piece.empty()) return;
    text_ += piece;
    emit_(piece);
  }

  std::optional<StreamDecoder> decoder_;
  StopFilter filter_;
  const std::function<void(std::string_view)>& emit_;
  std::string& text_;
};

}  // namespace

const char* Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos: return "eos";
    case FinishReason::kLength: return "length";
    case FinishReason::kStop: return "stop";
    case FinishReason::kInterrupted: return "interrupted";
    case FinishReason::kError: return "error";
  }
  return "?";
}

std::vector<int32_t> EncodePrompt(const Model& model, const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.Encode(text);
  if (!ids.empty()) return ids;
  const auto bos = tokenizer.bos() ? tokenizer.bos() : model.config.bos;
  if (!bos) throw Error("the prompt is empty, and neither tokenizer nor config.json names a token that begins a text (bos_token_id); give a prompt");
  return {*bos};
}

Engine::Engine(const Model& model, const Tokenizer* tokenizer, EngineOptions options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      pool_size_{.slots = 1, .pages = HasAttention(model.config) ? PagesFor(options_.context) : 0},
      plan_(FittingPlan(model, pool_size_, options_.name)),
      pool_(model.config, pool_size_),
      runtime_(options_.threads, static_cast<size_t>(plan_.workspace)),
      ends_(Ends(model.config, tokenizer)) {}

int64_t Engine::StepWeightBytes() const { return plan_.weights - (model_.config.tied ? 0 : static_cast<int64_t>(model_.weights.embedding.weight.bytes())); }

void Engine::Check(const Request& request) const {
  request.sampling.Validate();
  request.sampling.ValidateIds(model_.config.vocab);
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  if (request.prompt.empty()) throw Error("{}: the prompt has no tokens; give at least one", options_.name);
  for (int32_t id : request.prompt)
    if (id < 0 || id >= model_.config.vocab)
      throw Error("{}: the prompt has token id {}, the model knows ids from 0 to {}; is the tokenizer another model's?", options_.name, id,
                  model_.config.vocab - 1);
  if (HasAttention(model_.config) && tokens > options_.context)
    throw Error("{}: the prompt has {} tokens, the context has room for {}; raise --context", options_.name, Thousands(tokens), Thousands(options_.context));
}

// Tokens that may be chosen: the last one needs no room, since the model doesn't read it.
int64_t Engine::Room(const Request& request) const {
  if (!HasAttention(model_.config)) return request.max_tokens;
  return std::min(request.max_tokens, options_.context - static_cast<int64_t>(request.prompt.size()) + 1);
}

// Runs tokens of the sequence; logits [1, vocab] of the last one where wanted.
void Engine::Step(std::span<const int32_t> tokens, SequenceState& sequence, const Tensor& logits) {
  const auto rows = static_cast<int64_t>(tokens.size());
  Context& ctx = runtime_.context();
  Frame frame(ctx);
  Tensor hidden = ctx.Temp({rows, model_.config.dim});
  CHECK_MSG(pool_.Grow(sequence, rows), "no pages for {} tokens at {}", rows, sequence.position);
  const Batch batch{.tokens = {tokens.begin(), tokens.end()}, .sequences = {StatePool::Entry(sequence, 0, rows)}};
  Forward(ctx, model_.config, model_.weights, batch, pool_.states(), hidden);
  StatePool::Advance(sequence, rows);
  if (logits) Logits(ctx, model_.config, model_.weights, hidden.Rows(rows - 1, 1), logits);

  const int64_t trained = model_.config.context;
  if (trained > 0 && sequence.position > trained && !std::exchange(warned_, true) && options_.warn)
    options_.warn(fmt::format("{}: the text is longer than the {} tokens that the model was made for (max_position_embeddings); it may lose its way",
                              options_.name, Thousands(trained)));
}

// False where the user interrupted.
bool Engine::Prefill(const Request& request, SequenceState& sequence, const Tensor& logits) {
  for (std::span<const int32_t> left = request.prompt; !left.empty();) {
    if (request.interrupted && request.interrupted()) return false;
    const size_t rows = std::min<size_t>(kPrefillRows, left.size());
    Step(left.first(rows), sequence, rows == left.size() ? logits : Tensor());
    left = left.subspan(rows);
  }
  return true;
}

int32_t Engine::Choose(Sampler& sampler, const Tensor& logits, const SequenceState& sequence) {
  const std::span<const float> values(logits.as<float>(), static_cast<size_t>(logits.size()));
  const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  if (bad != values.end())
    throw Error("{}: the logit of token {} is {} at position {}; `bamba verify` names the tensor where that begins", options_.name, bad - values.begin(), *bad,
                sequence.position - 1);
  return sampler.Sample(values, static_cast<uint64_t>(sequence.position), sampler_space_);
}

Generation Engine::Generate(const Request& request, const std::function<void(std::string_view)>& emit) {
  Check(request);
  Generation result;
  TextOut out(tokenizer_, request.stop, emit, result.text);
  Sampler sampler(request.sampling, request.prompt, std::min(Room(request), model_.config.vocab));
  Lease lease(pool_);
  Context& ctx = runtime_.context();
  Frame frame(ctx);
  Tensor logits = ctx.Temp({1, model_.config.vocab});
  const int64_t room = Room(request);

  auto start = Clock::now();
  const bool complete = Prefill(request, lease.sequence, logits);
  result.prompt_seconds = SecondsSince(start);
  if (!complete) return result.finish = FinishReason::kInterrupted, result;

  start = Clock::now();
  while (static_cast<int64_t>(result.tokens.size()) < room) {
    const int32_t token = Choose(sampler, logits, lease.sequence);
    if (!request.ignore_eos && std::find(ends_.begin(), ends_.end(), token) != ends_.end()) {
      result.finish = FinishReason::kEos;
      break;
    }
    if (std::find(request.stop_tokens.begin(), request.stop_tokens.end(), token) != request.stop_tokens.end()) {
      result.finish = FinishReason::kStop;
      break;
    }
    result.tokens.push_back(token);
    out.Push(token);
    if (out.stopped()) {
      result.finish = FinishReason::kStop;
      break;
    }
    if (request.interrupted && request.interrupted()) {
      result.finish = FinishReason::kInterrupted;
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) == room) break;
    Step({&token, 1}, lease.sequence, logits);
    result.steps++;
  }
  result.step_seconds = SecondsSince(start);
  out.Finish();
  return result;
}

}  // namespace bamba
