#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace bamba {

struct VectorReport {
  static constexpr size_t kShown = 5;

  int64_t cases = 0, fields = 0, failed = 0;  // fields compared, and those that differ
  std::vector<std::string> first_failures;    // at most kShown lines
};

// Compares a tokenizer with recorded cases, one JSON object a line:
//   text           -> ids (without the template), ids_bos (with it), ids_nospecial (without it, special strings as text)
//   ids            -> decoded, decoded_skip (without special tokens; absent: as `decoded`)
// Every decoding is also done token by token. "cat" is a label. Throws Error for a line that is no such object.
VectorReport CheckVectors(const Tokenizer& tokenizer, const std::string& path);

}  // namespace bamba
