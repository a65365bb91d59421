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
    uint32_t rank = kNone;
  };

  void ReadOptions(const JsonField& model);
  void AddMerges(const TokenizerJson& file);
  bool Insert(uint64_t pair, uint32_t rank);
  uint32_t Rank(int32_t left, int32_t right) const;
  int32_t IdOf(char byte) const;
  void MergeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void MergeLong(std::string_view piece, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  std::string path_;
  bool ignore_merges_ = false;  // a piece that is a token is that token, whatever the merges make of it
  size_t longest_token_ = 0;    // bytes
  std::array<int32_t, 256> byte_ids_;
  std::vector<int32_t> merged_;       // by rank, the place in the list of merges: what the pair becomes
  std::vector<Slot> table_;           // pair -> rank; open addressing, at most three quarters full
  std::vector<uint64_t> filter_;      // a bit for each pair's hash, eight times as many: most pairs of tokens don't merge, and this fits a core's cache
  std::vector<uint32_t> byte_pairs_;  // [256 * 256] by bytes: the first ranks of every piece, without hashing
};

// Encodes the pieces of one text, remembering short ones: real text repeats its words. Memory is bounded, and small for a short text.
class BpeEncoder {
 public:
  // `text`: what the pieces are cut from. All three must outlive this; `ids` is complete after Flush.
  BpeEncoder(const Bpe& bpe, std::string_view text, std::vector<int32_t>& ids);

  void Append(std::string_view piece);  // part of the text, or living for the call only
  void AppendToken(int32_t id);
  void Flush();

 private:
  static constexpr size_t kLongestKey = 15, kMostIds = 4, kBatch = 16;

  struct Key {
    uint64_t low = 0, high = 0;  // the piece's bytes, its length in the topmost; 0: none

    bool operator==(const Key&) const = default;
  };
  struct Entry {
    Key key;
    int32_t ids[kMostIds] = {};  // the last is -count where there are fewer
  };
  struct alignas(64) Line {
    Entry recent, older;
  };
  // A piece whose line of the memory is on its way from the slower caches: waiting for each in turn would cost more than all else.
  struct Pending {
    std::string_view piece;
    Key key;
    Line* line;
  };

  void Encode(const Pending& pending);

  const Bpe& bpe_;
  std::string_view text_;
  std::vector<int32_t>& ids_;
  std::vector<Line> lines_;  // at most 4 MiB: 150,000 different words stand in 60 MB of novels
  Pending pending_[kBatch];
  size_t pending_count_ = 0;
};

}  // namespace bamba
