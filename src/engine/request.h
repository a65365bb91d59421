#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/sampler.h"

namespace bamba {

// What is asked of an engine: texts that continue a prompt.
struct Request {
  std::vector<int32_t> prompt;  // as EncodePrompt gives it
  int64_t max_tokens = 0;       // of each text
  int completions = 1;          // texts; the prompt is read once. Text i is the one that a request of its own with `sampling.seed` + i would give
  Sampling sampling;
  std::vector<std::string> stop;      // a text ends before the first of these
  std::vector<int32_t> stop_tokens;   // each ends a text, and is no part of it; beside the model's own
  bool ignore_eos = false;            // the model's own don't
  std::function<bool()> interrupted;  // asked between steps; may be empty
};

enum class FinishReason { kEos, kLength, kStop, kInterrupted, kError };
const char* Name(FinishReason reason);  // "eos", "length", "stop", "interrupted", "error"

struct Generation {
  std::string text;             // without the prompt; well-formed UTF-8, without special tokens
  std::vector<int32_t> tokens;  // that were chosen, but for one that ends a text
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
