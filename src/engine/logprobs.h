#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/batch.h"

namespace bamba {

struct Logprob {
  int32_t id;
  double logprob;  // log p, natural
};

// What the model itself thought of a token, whatever bias, penalties and temperature a sampler then applied.
struct TokenLogprobs {
  Logprob token;
  std::vector<Logprob> top;  // the likeliest tokens, the first the likeliest; equal ones by id
};

// log Σ e^logit, summed in one fixed order by the exponential and logarithm of base/portable_math.h: the same bits on every machine. Logits must be finite.
double LogSumExp(std::span<const float> logits);

// The log probabilities of token `id` and of the `top` likeliest tokens (all of a smaller vocabulary).
TokenLogprobs Logprobs(std::span<const float> logits, int32_t id, int64_t top);
// The same of what an accelerator found out of a row (Accelerator::Logprobs).
TokenLogprobs Logprobs(const LogprobParts& parts, int32_t id, int64_t top);

}  // namespace bamba
