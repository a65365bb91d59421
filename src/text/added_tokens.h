#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_fields.h"

namespace bamba {

// A token that is found in the text itself, before anything else: "<|end_of_text|>".
struct AddedToken {
  std::string content;
  int32_t id;
  bool single_word;     // only where no word character stands beside it
  bool lstrip, rstrip;  // swallows the white space before, after it
  bool normalized;      // sought after all those that aren't, in what they left
  bool special;         // an instruction to the model, no text
};

// Reads "added_tokens". Throws Error.
std::vector<AddedToken> ReadAddedTokens(const JsonField& json);

// Finds added tokens in text: at each place the longest, from left to right.
class AddedTokenFinder {
 public:
  // A stretch of text: a token, or (id -1) text between tokens.
  struct Part {
    std::string_view text;
    int32_t id;
  };

  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Without `parse_special`, special tokens stay text.
  std::vector<Part> Split(std::string_view text, bool parse_special) const;

 private:
  const AddedToken* LongestAt(std::string_view text) const;
  size_t NextStart(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  bool starts_[256] = {};           // the bytes that some token begins with
  int only_start_ = -1;             // the one such byte, if it is one
};

}  // namespace bamba
