#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/logprobs.h"
#include "engine/sampler.h"

namespace bamba {

// What is asked of an engine: texts that continue a prompt.
struct Request {
  std::vector<int32_t> prompt;  // as EncodePrompt gives it
  int64_t max_tokens = 0;       // of each text
  int completions = 1;          // texts; the prompt is read once. Text i is the one that a request of its own with `sampling.seed` + i would give
  Sampling sampling;
  std::vector<std::string> stop;        // a text ends before the first of these
  std::vector<int32_t> stop_tokens;     // each ends a text, and is no part of it; beside the model's own
  int64_t min_tokens = 0;               // before so many tokens, none that ends a text is chosen, and stop strings are just text
  bool ignore_eos = false;              // the model's own don't end a text
  std::optional<int64_t> top_logprobs;  // tell the tokens' log probabilities, and those of so many of the likeliest tokens beside each
  bool prompt_logprobs = false;         // those of the prompt's tokens too
  std::function<bool()> interrupted;    // asked between steps; may be empty
};

enum class FinishReason { kEos, kLength, kStop, kInterrupted, kError };
const char* Name(FinishReason reason);  // "eos", "length", "stop", "interrupted", "error"

struct Generation {
  std::string text;                            // without the prompt; well-formed UTF-8, without special tokens
  std::vector<int32_t> tokens;                 // that were chosen, but for one that ends a text
  std::vector<TokenLogprobs> logprobs;         // of `tokens`, where the request asks
  std::vector<TokenLogprobs> prompt_logprobs;  // of the prompt's tokens from the second on; in completion 0
  FinishReason finish = FinishReason::kLength;
  std::string error;          // of kError: one line
  double prompt_seconds = 0;  // from admission until the prompt was read
  int64_t steps = 0;          // of one token after the prompt, and their time
  double step_seconds = 0;
};

// Hears of a request's texts while they are written, in Engine::Step. Either may be empty. What they throw comes out of Step.
struct Listener {
  // A piece of text `completion`, as soon as it is certain: whole characters, and no part of a stop string.
  std::function<void(int completion, std::string_view piece)> text;
  std::function<void(int completion, Generation&& generation)> done;  // once for each completion
};

}  // namespace bamba
