#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/plan.h"
#include "engine/runtime.h"
#include "engine/sampler.h"
#include "engine/state_pool.h"
#include "model/bamba.h"
#include "text/tokenizer.h"

namespace bamba {

struct EngineOptions {
  std::string name;  // of the model in errors: its directory
  int threads = 1;
  int64_t context = 0;                           // tokens whose keys and values there is room for; without attention there is no such limit
  std::function<void(const std::string&)> warn;  // one line for the user; may be empty
};

struct Request {
  std::vector<int32_t> prompt;  // as Engine::Encode gives it
  int64_t max_tokens = 0;
  Sampling sampling;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_eos = false;
  std::function<bool()> interrupted;  // asked between steps; may be empty
};

enum class FinishReason { kEos, kLength, kStop, kInterrupted };
const char* Name(FinishReason reason);  // "eos", "length", "stop", "interrupted"

struct Generation {
  std::string text;             // without the prompt; well-formed UTF-8, without special tokens
  std::vector<int32_t> tokens;  // that were chosen, but for one that ends a text
  FinishReason finish = FinishReason::kLength;
  double prompt_seconds = 0;
  int64_t steps = 0;  // of one token after the prompt, and their time
  double step_seconds = 0;
};

// The ids of a prompt: its text's, with what the tokenizer's template puts around it. An empty one is the token that begins a text (the tokenizer's, else the
// config's; Error where neither knows one).
std::vector<int32_t> EncodePrompt(const Model& model, const Tokenizer& tokenizer, std::string_view text);

// A model that writes text: whoever generates does it through this. One request at a time; the same request gives the same tokens whatever came before it and
// with any number of threads.
class Engine {
 public:
  // `model` and `tokenizer` must outlive this. Without a tokenizer (null) the text is the tokens' ids in decimal, a blank before each.
  // Throws Error where the machine's memory is too small, with the plan's numbers.
  Engine(const Model& model, const Tokenizer* tokenizer, EngineOptions options);

  // Calls `emit` with each piece of the text as soon as it is certain: whole characters, and no part of a stop string. Throws Error where the prompt has no
  // tokens, ids outside the vocabulary or more tokens than the context, and where a logit isn't finite.
  Generation Generate(const Request& request, const std::function<void(std::string_view piece)>& emit);

  const MemoryPlan& plan() const { return plan_; }
  // Bytes that a step of one token reads at `position`: every weight but the other rows of the embedding, the sequence's state, its keys and values.
  int64_t StepBytes(int64_t position) const;

 private:
  void CheckPrompt(const std::vector<int32_t>& prompt) const;
  int64_t Room(const Request& request) const;
  bool Prefill(const Request& request, SequenceState& sequence, const Tensor& logits);
  void Step(std::span<const int32_t> tokens, SequenceState& sequence, const Tensor& logits);
  int32_t Choose(Sampler& sampler, const Tensor& logits, const SequenceState& sequence) const;

  const Model& model_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  PoolSize pool_size_;
  MemoryPlan plan_;
  StatePool pool_;
  Runtime runtime_;
  std::vector<int32_t> ends_;  // ids of the tokens that end a text
  bool warned_ = false;
};

}  // namespace bamba
