#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/stop_filter.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace bamba {

// The tokens that end the texts of a request: `ends`, the model's own, unless they are ignored, and those that the request names.
std::vector<int32_t> LastTokens(const Request& request, std::span<const int32_t> ends);

// One text of a request while it is written: chooses tokens from logits, turns them into what the reader sees, and knows when it is over.
class Completion {
 public:
  // `request` and `listener` must outlive this. `before`: what the text continues. `room`: the most tokens. `ends`: ids that end a text.
  Completion(const Request& request, const Listener& listener, int index, std::span<const int32_t> before, int64_t room, const Tokenizer* tokenizer,
             std::span<const int32_t> ends);

  // The token that follows `position` tokens. True: it is part of the text, which goes on after it; false: the text is over.
  bool Choose(std::span<const float> logits, int64_t position, SamplerSpace& space);

  // Whether tokens can be chosen without the host's looking at the logits.
  bool HasChoices() const { return request_.top_logprobs.value_or(0) <= kMostTopLogprobs && !request_.prompt_logprobs && sampler_.HasChoices(); }
  // How Choose would choose the token that follows `position` tokens; see Sampler::ChoiceAt. What was chosen then goes to Take, with its log probabilities
  // where the choice asks for them, which does the rest.
  Choice ChoiceAt(int64_t position, int64_t awaited, std::vector<LogitEdit>& edits) const;
  bool Take(int32_t token, TokenLogprobs logprobs);

  // Tokens that may still be chosen.
  int64_t left() const { return room_ - static_cast<int64_t>(result_.tokens.size()); }

  // Takes the logits after each of the prompt's tokens but the last, in order, where the request asks for the prompt's log probabilities.
  void ScorePrompt(std::span<const float> logits);

  // Ends a text that isn't over by itself.
  void End(FinishReason reason) { result_.finish = reason; }
  void Fail(std::string error);
  void Flush();  // gives out what was held back; the text is over

  int32_t last() const { return result_.tokens.back(); }
  Generation& result() { return result_; }

 private:
  std::span<const int32_t> NeverAt(int64_t chosen) const;
  bool Accept(int32_t token, TokenLogprobs logprobs);
  void Show(const std::string& piece);

  const Request& request_;
  const Listener& listener_;
  int index_;
  int64_t room_;
  std::span<const int32_t> ends_;
  std::vector<int32_t> last_tokens_;  // see LastTokens
  Sampler sampler_;
  std::optional<StreamDecoder> decoder_;
  StopFilter filter_;
  Generation result_;
};

}  // namespace bamba
