#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace bamba::cli {

// The flags that say how tokens are chosen and where a text ends: the same for every verb that writes text.
class SamplingFlags {
 public:
  // Adds the flags to a verb. This must live until the command line is parsed.
  void AddTo(CLI::App& verb);

  // What the flags ask for, of texts of at most `tokens` that Ctrl-C ends; the prompt is to be filled in. Without --seed the seed is new with each call. Throws
  // UsageError for what makes no sense.
  Request Read(int64_t tokens) const;

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
