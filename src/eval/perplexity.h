#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/bamba.h"

namespace bamba {

struct PerplexityOptions {
  int64_t window = 1024;    // tokens that a window reads, each from the empty state
  int64_t stride = 1024;    // tokens between starts of windows, ≤ window; a later window scores its last `stride` tokens only
  int64_t max_windows = 0;  // 0: all
};

struct PerplexityResult {
  double nll_per_token = 0;                  // nats
  double perplexity = 0, perplexity_se = 0;  // exp of it; standard error from the spread of the tokens' nll, as if they were independent
  double bits_per_byte = 0;                  // of the scored tokens' text
  int64_t tokens = 0, windows = 0;           // scored tokens
};

// Windows that `tokens` holds: window k reads tokens [k·stride, k·stride + window) and predicts each one's successor; a tail that doesn't fill a window is
// dropped. A text shorter than one window is one window of its own length.
int64_t WindowCount(int64_t tokens, const PerplexityOptions& options);

// nll [T − 1 − first]: −log p of tokens[first + 1 …], each given all tokens before it from tokens[0] on.
void ScoreTokens(Context& ctx, const Model& model, std::span<const int32_t> tokens, int64_t first, const Tensor& nll);

// How well the model predicts a text. `bytes[i]`: length in bytes of tokens[i]. `report` is called after each window with the result so far; false stops there.
// Throws Error where there is nothing to score or a logit isn't finite.
PerplexityResult Perplexity(Context& ctx, const Model& model, std::span<const int32_t> tokens, std::span<const int32_t> bytes, const PerplexityOptions& options,
                            const std::function<bool(const PerplexityResult&)>& report);

}  // namespace bamba
