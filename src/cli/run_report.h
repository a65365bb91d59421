#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace bamba::cli {

// What all texts of a run have in common.
struct RunReport {
  std::string model;
  const Tokenizer* tokenizer;  // null: prompts and texts are token ids
  double load_seconds = 0;     // until the model could run, without
  double context_seconds = 0;  // what a GPU's driver took to make it ready
  bool echo = false;           // the prompts are part of the result
};

struct WrittenText {
  size_t index = 0;  // of the prompt
  std::string_view prompt;
  const Request& request;
  int completion = 0;
  const Generation& generation;
};

// The object of `bamba run --json`, and a line feed.
std::string Json(const RunReport& report, const WrittenText& text);

// A line for each token: its text, its log probability, and the likeliest tokens with theirs. Empty where the request asks for none.
std::string LogprobTable(const RunReport& report, const WrittenText& text);

// Sums over the texts of a run.
struct RunTotals {
  int64_t texts = 0, prompt_tokens = 0, tokens = 0;
  int64_t steps = 0;  // tokens after each text's first, and the time in which they were written
  double prompt_seconds = 0, step_seconds = 0;
  bool interrupted = false;
};

// The line under the texts: what ran, and how fast. The rate of bytes is that of the weights, which every token reads once (a small model's from a cache).
std::string ClosingLine(const RunReport& report, const RunTotals& totals, const Sampling& sampling, const Model& model, const Engine& engine);

}  // namespace bamba::cli
