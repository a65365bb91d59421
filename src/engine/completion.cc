#include "engine/completion.h"

#include <algorithm>
#include <utility>

namespace bamba {
namespace {

// Memory is taken for so many tokens before the first one; longer texts take more when they come to it.
constexpr int64_t kReserved = 4096;

Sampling WithSeed(Sampling sampling, int index) {
  sampling.seed += static_cast<uint64_t>(index);
  return sampling;
}

bool Contains(std::span<const int32_t> ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

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

std::vector<int32_t> LastTokens(const Request& request, std::span<const int32_t> ends) {
  std::vector<int32_t> tokens = request.stop_tokens;
  if (!request.ignore_eos) tokens.insert(tokens.end(), ends.begin(), ends.end());
  return tokens;
}

Completion::Completion(const Request& request, const Listener& listener, int index, std::span<const int32_t> before, int64_t room, const Tokenizer* tokenizer,
                       std::span<const int32_t> ends)
    : request_(request),
      listener_(listener),
      index_(index),
      room_(room),
      ends_(ends),
      last_tokens_(LastTokens(request, ends)),
      sampler_(WithSeed(request.sampling, index), before, std::min(room, kReserved)),
      filter_(request.stop) {
  if (tokenizer) decoder_.emplace(*tokenizer, true);
  const auto tokens = static_cast<size_t>(std::min(room, kReserved));
  result_.tokens.reserve(tokens);
  result_.text.reserve(8 * tokens);
}

// What must not follow `chosen` tokens.
std::span<const int32_t> Completion::NeverAt(int64_t chosen) const { return chosen >= request_.min_tokens ? std::span<const int32_t>() : last_tokens_; }

Choice Completion::ChoiceAt(int64_t position, int64_t awaited, std::vector<LogitEdit>& edits) const {
  Choice choice = sampler_.ChoiceAt(static_cast<uint64_t>(position), NeverAt(std::ssize(result_.tokens) + (awaited >= 0 ? 1 : 0)), awaited, edits);
  choice.top_logprobs = request_.top_logprobs.value_or(-1);
  return choice;
}

bool Completion::Choose(std::span<const float> logits, int64_t position, SamplerSpace& space) {
  if (left() <= 0) return false;
  const int32_t token = sampler_.Sample(logits, static_cast<uint64_t>(position), space, NeverAt(std::ssize(result_.tokens)));
  return Accept(token, request_.top_logprobs ? Logprobs(logits, token, *request_.top_logprobs) : TokenLogprobs());
}

bool Completion::Take(int32_t token, TokenLogprobs logprobs) {
  if (left() <= 0) return false;
  sampler_.Count(token);
  return Accept(token, std::move(logprobs));
}

// The token becomes part of the text, or ends it.
bool Completion::Accept(int32_t token, TokenLogprobs logprobs) {
  const auto chosen = [&] { return static_cast<int64_t>(result_.tokens.size()); };
  const bool may_end = chosen() >= request_.min_tokens;
  if (may_end && Contains(last_tokens_, token)) return End(!request_.ignore_eos && Contains(ends_, token) ? FinishReason::kEos : FinishReason::kStop), false;
  result_.tokens.push_back(token);
  if (request_.top_logprobs) result_.logprobs.push_back(std::move(logprobs));
  const std::string piece = decoder_ ? decoder_->Push(token) : " " + std::to_string(token);
  Show(may_end ? filter_.Push(piece) : piece);
  if (filter_.stopped()) return End(FinishReason::kStop), false;
  return chosen() < room_;
}

void Completion::ScorePrompt(std::span<const float> logits) {
  const int32_t next = request_.prompt[result_.prompt_logprobs.size() + 1];
  result_.prompt_logprobs.push_back(Logprobs(logits, next, request_.top_logprobs.value_or(0)));
}

void Completion::Fail(std::string error) {
  End(FinishReason::kError);
  result_.error = std::move(error);
}

void Completion::Flush() {
  if (decoder_) Show(filter_.Push(decoder_->Finish()));
  Show(filter_.Finish());
}

void Completion::Show(const std::string& piece) {
  if (piece.empty()) return;
  result_.text += piece;
  if (listener_.text) listener_.text(index_, piece);
}

}  // namespace bamba
