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

Completion::Completion(const Request& request, const Listener& listener, int index, std::span<const int32_t> before, int64_t room, const Tokenizer* tokenizer,
                       std::span<const int32_t> ends)
    : request_(request),
      listener_(listener),
      index_(index),
      room_(room),
      ends_(ends),
      sampler_(WithSeed(request.sampling, index), before, std::min(room, kReserved)),
      filter_(request.stop) {
  if (tokenizer) decoder_.emplace(*tokenizer, true);
  const auto tokens = static_cast<size_t>(std::min(room, kReserved));
  result_.tokens.reserve(tokens);
  result_.text.reserve(8 * tokens);
}

bool Completion::Choose(std::span<const float> logits, int64_t position, SamplerSpace& space) {
  const auto chosen = [&] { return static_cast<int64_t>(result_.tokens.size()); };
  if (chosen() >= room_) return false;
  const int32_t token = sampler_.Sample(logits, static_cast<uint64_t>(position), space);
  const auto among = [&](const auto& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  if (!request_.ignore_eos && among(ends_)) return End(FinishReason::kEos), false;
  if (among(request_.stop_tokens)) return End(FinishReason::kStop), false;
  result_.tokens.push_back(token);
  Show(filter_.Push(decoder_ ? decoder_->Push(token) : " " + std::to_string(token)));
  if (filter_.stopped()) return End(FinishReason::kStop), false;
  return chosen() < room_;
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
