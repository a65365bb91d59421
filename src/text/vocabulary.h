#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_json.h"

namespace bamba {

// A byte-level vocabulary writes each byte as a printable character: "Ġthe" is " the". Appends what `content` stands for and returns true; false, and `bytes`
// as it was, if a character is no such stand-in.
bool AppendStandInBytes(std::string_view content, std::string& bytes);

uint64_t HashBytes(std::string_view bytes);

// Tokens by id and by content. The tokens of the model (`vocab` of the file) come first, then added ones that the model lacks.
class Vocabulary {
 public:
  struct Added {
    std::string content;
    int64_t id;
  };

  // Throws Error unless the tokens' ids are 0 … size-1, each once: holes, duplicates, absurd ids; or if two tokens have one content.
  Vocabulary(const TokenizerJson& file, const std::vector<Added>& added);

  int32_t size() const { return static_cast<int32_t>(spans_.size()); }

  // What a token decodes to, possibly a part of a character: the bytes its content stands for, or the content itself where that is not byte-level text.
  std::string_view Bytes(int32_t id) const { return {bytes_.data() + spans_[id].begin, spans_[id].length}; }

  int32_t FindBytes(std::string_view bytes) const;      // the model's token that is exactly these bytes, or -1
  int32_t FindContent(std::string_view content) const;  // any token, written as in the file, or -1

 private:
  struct Span {
    uint32_t begin, length;
  };
  struct Slot {
    uint32_t hash;
    int32_t id = -1;
  };

  void Place(std::string_view content, int64_t id, int64_t count, const TokenizerJson& file);
  [[noreturn]] void FailOnId(std::string_view content, int64_t id, const TokenizerJson& file) const;
  bool Insert(int32_t id);

  std::string bytes_;
  std::vector<Span> spans_;                               // by id
  std::vector<uint64_t> filter_;                          // a bit for each hash in the table, eight times as many: says no without leaving a core's cache
  std::vector<Slot> table_;                               // open addressing, at most half full; the model's byte-level tokens
  std::map<std::string, int32_t, std::less<>> verbatim_;  // the others, by content
};

}  // namespace bamba
