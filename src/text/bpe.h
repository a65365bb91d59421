#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_fields.h"
#include "text/tokenizer_json.h"
#include "text/vocabulary.h"

namespace bamba {

// Byte-pair encoding (Sennrich et al. 2016, over bytes): a piece of text starts as its bytes; while a pair of neighbours is in the list of merges, the one
// that stands first in the list (of equals the leftmost) becomes one token. Immutable; any number of threads.
class Bpe {
 public:
  struct Merge {
    uint32_t rank = kNone;  // place in the list of merges, kNone: the pair does not merge
    int32_t id = -1;        // what the pair becomes
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  // `vocabulary` must outlive this. Throws Error: a model other than byte-level BPE, an option that isn't built, a merge of unknown tokens, into an unknown
  // token or listed twice.
  Bpe(const TokenizerJson& file, const Vocabulary& vocabulary);

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Appends the ids of one piece. Throws Error for a byte that the vocabulary lacks.
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint64_t pair = UINT64_MAX;  // left id << 32 | right id
    Merge merge;
  };

  void ReadOptions(const JsonField& model);
  void AddMerges(const TokenizerJson& file);
  Merge& At(uint64_t pair);
  Merge Find(int32_t left, int32_t right) const;
  int32_t IdOf(char byte) const;
  void MergeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void MergeLong(std::string_view piece, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  std::string path_;
  bool ignore_merges_ = false;  // a piece that is a token is that token, whatever the merges make of it
  size_t longest_token_ = 0;    // bytes
  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> table_;        // open addressing, at most three quarters full
  std::vector<Merge> byte_pairs_;  // [256 * 256] by bytes: the first merges of every piece, without hashing
};

// Encodes the pieces of one text, remembering short ones: real text repeats its words. Memory is bounded, and small for a short text.
class BpeEncoder {
 public:
  // `text`: what the pieces are cut from; must outlive this.
  BpeEncoder(const Bpe& bpe, std::string_view text);

  void Append(std::string_view piece, std::vector<int32_t>& ids);

 private:
  static constexpr size_t kLongestKey = 15, kMostIds = 4;

  struct alignas(16) Entry {
    uint64_t low = 0, high = 0;  // the piece's bytes, its length in the topmost; 0: empty
    int32_t ids[kMostIds] = {};  // the last is -count where there are fewer
  };

  void Learn(std::string_view piece, size_t slot, Entry key, std::vector<int32_t>& ids);

  const Bpe& bpe_;
  std::string_view text_;
  std::vector<Entry> entries_;  // pairs of ways, the first the more recent; at most 4 MiB: 150,000 different words stand in 60 MB of novels
};

}  // namespace bamba
