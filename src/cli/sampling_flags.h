#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/sampler.h"

namespace bamba::cli {

// The flags that say how tokens are chosen and where a text ends: the same for every verb that writes text.
class SamplingFlags {
 public:
  // Adds the flags to a verb. This must live until the command line is parsed.
  void AddTo(CLI::App& verb);

  // What the flags say; without --seed the seed is new with each call. Throws UsageError for what makes no sense where at most `tokens` are written.
  Sampling Read(int64_t tokens) const;

  const std::vector<std::string>& stop() const { return stop_; }
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  int64_t min_tokens() const { return min_tokens_; }
  bool ignore_eos() const { return ignore_eos_; }

 private:
  Sampling sampling_{.temperature = 0.8, .top_p = 0.95};
  std::optional<uint64_t> seed_;
  bool greedy_ = false, ignore_eos_ = false;
  std::vector<std::string> logit_bias_, stop_;
  std::vector<int32_t> stop_tokens_;
  int64_t min_tokens_ = 0;
};

// "ID=VALUE": a token's id and what is added to its logit, a number or -inf. Throws UsageError.
std::pair<int32_t, double> ParseLogitBias(std::string_view text);

}  // namespace bamba::cli
