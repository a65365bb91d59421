#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bamba {

// A tokenizer.json as read, not yet understood. The two long lists (Llama-3: 128,000 tokens, 280,147 merges) lie flat, everything else is a JSON tree,
// in which model.vocab and model.merges are null.
struct TokenizerJson {
  struct Token {
    uint32_t begin, length;  // of the content in `text`
    int64_t id;
  };
  struct Merge {
    uint32_t begin, left, right;  // `text` holds `left` bytes, then `right` bytes
  };

  std::string path;
  boost::json::value rest;
  std::string text;
  std::vector<Token> vocab;   // in the file's order
  std::vector<Merge> merges;  // likewise: by rank
  bool has_vocab = false, has_merges = false;

  std::string_view Content(const Token& t) const { return {text.data() + t.begin, t.length}; }
};

// Parses in one pass. Accepts merges as "a b" and as ["a", "b"]. Throws Error: not JSON, nested too deep, an id that is no integer, a merge of other than two.
TokenizerJson ParseTokenizerJson(std::span<const char> json, const std::string& path);

}  // namespace bamba
