#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

#include "base/error.h"

namespace bamba {
namespace {

constexpr size_t kShortPiece = 64;  // bytes up to which scanning all pairs beats a heap

uint64_t PairKey(int32_t left, int32_t right) { return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right); }

// [n]: keeps the first n bytes of a word in memory order, which is little-endian.
static_assert(std::endian::native == std::endian::little);
constexpr uint64_t kFirstBytes[] = {0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, ~uint64_t{0}};

size_t PairHash(uint64_t pair) {
  uint64_t h = pair * 0x9E3779B97F4A7C15;
  return h ^ h >> 32;
}

}  // namespace

Bpe::Bpe(const TokenizerJson& file, const Vocabulary& vocabulary) : vocabulary_(vocabulary), path_(file.path) {
  for (int b = 0; b < 256; ++b) {
    char byte = static_cast<char>(b);
    byte_ids_[b] = vocabulary.FindBytes({&byte, 1});
  }
  ReadOptions(JsonField(&file.rest, file.path)["model"]);
  for (const TokenizerJson::Token& token : file.vocab) longest_token_ = std::max(longest_token_, vocabulary.Bytes(static_cast<int32_t>(token.id)).size());
  AddMerges(file);
}

void Bpe::ReadOptions(const JsonField& model) {
  auto refuse = [&](const char* key, const char* why) { throw Error("{}.{} is set, which isn't supported: {}", model.where(), key, why); };
  bool all_bytes = std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  if (JsonField dropout = model["dropout"]; !dropout.IsNull() && !dropout.IsZero()) refuse("dropout", "it makes encoding random");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (JsonField affix = model[key]; !affix.IsNull() && !affix.String().empty()) refuse(key, "byte-level vocabularies mark words by their space");
  if (!all_bytes && model["byte_fallback"].BoolOr(false)) refuse("byte_fallback", "the vocabulary must have a token for each byte instead");
  if (JsonField unknown = model["unk_token"]; !all_bytes && !unknown.IsNull()) {
    if (model["fuse_unk"].BoolOr(false)) refuse("fuse_unk", "the vocabulary must have a token for each byte instead");
    int32_t id = vocabulary_.FindContent(unknown.String());
    if (id < 0) throw Error("{}: '{}' is not in the vocabulary", unknown.where(), unknown.String());
    std::replace(byte_ids_.begin(), byte_ids_.end(), -1, id);
  }
  ignore_merges_ = model["ignore_merges"].BoolOr(false);
}

void Bpe::AddMerges(const TokenizerJson& file) {
  table_.resize(std::bit_ceil(file.merges.size() + file.merges.size() / 3 + 1));
  filter_.resize(std::bit_ceil(file.merges.size() / 8 + 1));
  merged_.reserve(file.merges.size());
  std::string bytes, one;
  for (uint32_t rank = 0; rank < file.merges.size(); ++rank) {
    const TokenizerJson::Merge& m = file.merges[rank];
    std::string_view left(file.text.data() + m.begin, m.left), right(left.data() + m.left, m.right);
    auto known = [&](std::string_view content) {
      one.clear();
      int32_t id = AppendStandInBytes(content, one) ? vocabulary_.FindBytes(one) : vocabulary_.FindContent(content);
      if (id < 0) throw Error("{}: merge {} ('{}' and '{}') needs the token '{}', which the vocabulary lacks", path_, rank, left, right, content);
      return id;
    };
    if (left.empty() || right.empty()) throw Error("{}: merge {} ('{}' and '{}') has an empty side and would never end", path_, rank, left, right);
    int32_t left_id = known(left), right_id = known(right);
    if (!Insert(PairKey(left_id, right_id), rank)) throw Error("{}: merge {} ('{}' and '{}') is listed twice", path_, rank, left, right);
    merged_.push_back(known({left.data(), left.size() + right.size()}));
  }
  byte_pairs_.resize(256 * 256);
  for (int left = 0; left < 256; ++left)
    for (int right = 0; right < 256; ++right) byte_pairs_[left * 256 + right] = Rank(byte_ids_[left], byte_ids_[right]);
}

bool Bpe::Insert(uint64_t pair, uint32_t rank) {
  size_t hash = PairHash(pair);
  filter_[hash / 64 & (filter_.size() - 1)] |= uint64_t{1} << hash % 64;
  for (size_t i = hash;; ++i) {
    Slot& slot = table_[i & (table_.size() - 1)];
    if (slot.pair == pair) return false;
    if (slot.pair != UINT64_MAX) continue;
    slot = {pair, rank};
    return true;
  }
}

uint32_t Bpe::Rank(int32_t left, int32_t right) const {
  uint64_t pair = PairKey(left, right);
  size_t hash = PairHash(pair);
  if (!(filter_[hash / 64 & (filter_.size() - 1)] >> hash % 64 & 1)) return kNone;
  for (size_t i = hash;; ++i) {
    const Slot& slot = table_[i & (table_.size() - 1)];
    if (slot.pair == pair || slot.pair == UINT64_MAX) return slot.rank;
  }
}

int32_t Bpe::IdOf(char byte) const {
  int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
  if (id < 0)
    throw Error("{}: the vocabulary has no token for the byte 0x{:02X}, nor an unknown token; the text can't be encoded", path_, static_cast<uint8_t>(byte));
  return id;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignore_merges_ && piece.size() <= longest_token_) {
    if (int32_t id = vocabulary_.FindBytes(piece); id >= 0) return ids.push_back(id);
  }
  piece.size() <= kShortPiece ? MergeShort(piece, ids) : MergeLong(piece, ids);
}

void Bpe::MergeShort(std::string_view piece, std::vector<int32_t>& ids) const {
  int32_t id[kShortPiece];
  uint32_t rank[kShortPiece];  // [i]: of the tokens i and i + 1
  size_t n = piece.size();
  for (size_t i = 0; i < n; ++i) id[i] = IdOf(piece[i]);
  for (size_t i = 0; i + 1 < n; ++i) rank[i] = byte_pairs_[static_cast<uint8_t>(piece[i]) * 256 + static_cast<uint8_t>(piece[i + 1])];
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (rank[i] < rank[best]) best = i;
    if (rank[best] == kNone) break;
    id[best] = merged_[rank[best]];
    --n;
    std::copy(id + best + 2, id + n + 1, id + best + 1);
    std::copy(rank + best + 1, rank + n, rank + best);
    if (best + 1 < n) rank[best] = Rank(id[best], id[best + 1]);
    if (best > 0) rank[best - 1] = Rank(id[best - 1], id[best]);
  }
  ids.insert(ids.end(), id, id + n);
}

// The tokens form a linked list; a heap holds (rank, place) of every pair, and of pairs that are no more, which are known by their rank having changed.
void Bpe::MergeLong(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() >= kNone) throw Error("{}: a piece of text of {} bytes without a break, expected less than 4 GiB", path_, piece.size());
  struct Symbol {
    int32_t id;
    uint32_t rank;            // of this and the next
    uint32_t previous, next;  // kNone at the ends
  };
  auto n = static_cast<uint32_t>(piece.size());
  std::vector<Symbol> symbols(n);
  std::vector<uint64_t> candidates;
  auto candidate = [](uint32_t rank, uint32_t at) { return static_cast<uint64_t>(rank) << 32 | at; };
  for (uint32_t i = 0; i < n; ++i) {
    symbols[i] = {IdOf(piece[i]), kNone, i == 0 ? kNone : i - 1, i + 1 == n ? kNone : i + 1};
    if (i + 1 < n) symbols[i].rank = byte_pairs_[static_cast<uint8_t>(piece[i]) * 256 + static_cast<uint8_t>(piece[i + 1])];
    if (symbols[i].rank != kNone) candidates.push_back(candidate(symbols[i].rank, i));
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap(std::greater<>(), std::move(candidates));
  auto pair_up = [&](uint32_t at) {
    Symbol& s = symbols[at];
    s.rank = s.next == kNone ? kNone : Rank(s.id, symbols[s.next].id);
    if (s.rank != kNone) heap.push(candidate(s.rank, at));
  };
  while (!heap.empty()) {
    auto rank = static_cast<uint32_t>(heap.top() >> 32), at = static_cast<uint32_t>(heap.top());
    heap.pop();
    Symbol& left = symbols[at];
    if (left.rank != rank) continue;
    Symbol& right = symbols[left.next];
    left.id = merged_[rank];
    left.next = right.next;
    right.rank = kNone;
    if (left.next != kNone) symbols[left.next].previous = at;
    pair_up(at);
    if (left.previous != kNone) pair_up(left.previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
}

BpeEncoder::BpeEncoder(const Bpe& bpe, std::string_view text, std::vector<int32_t>& ids)
    : bpe_(bpe), text_(text), ids_(ids), lines_(std::bit_ceil(std::clamp<size_t>(text.size() / 32, 1, 1 << 16))) {}

void BpeEncoder::Append(std::string_view piece) {
  size_t offset = reinterpret_cast<uintptr_t>(piece.data()) - reinterpret_cast<uintptr_t>(text_.data());
  const bool in_text = offset < text_.size();
  Pending& pending = pending_[pending_count_++];
  pending = {piece, {}, nullptr};
  if (piece.size() <= kLongestKey) {
    // Sixteen bytes are read at once where the text has them, and cut down to the piece.
    char copy[16] = {};
    const char* bytes = piece.data();
    if (!in_text || text_.size() - offset < sizeof copy) bytes = static_cast<const char*>(std::memcpy(copy, bytes, piece.size()));
    Key& key = pending.key;
    std::memcpy(&key.low, bytes, 8);
    std::memcpy(&key.high, bytes + 8, 8);
    key.low &= kFirstBytes[std::min<size_t>(piece.size(), 8)];
    key.high &= kFirstBytes[std::max<size_t>(piece.size(), 8) - 8];
    key.high |= static_cast<uint64_t>(piece.size()) << 56;
    uint64_t hash = (key.low ^ std::rotl(key.high, 29)) * 0x9E3779B97F4A7C15;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93;
    pending.line = &lines_[hash >> 40 & (lines_.size() - 1)];
    __builtin_prefetch(pending.line, 1);
  }
  if (pending_count_ == kBatch || !in_text) Flush();
}

void BpeEncoder::AppendToken(int32_t id) {
  Flush();
  ids_.push_back(id);
}

void BpeEncoder::Flush() {
  for (size_t i = 0; i < pending_count_; ++i) Encode(pending_[i]);
  pending_count_ = 0;
}

void BpeEncoder::Encode(const Pending& pending) {
  if (pending.line == nullptr) return bpe_.Encode(pending.piece, ids_);
  Line& line = *pending.line;
  for (const Entry* entry : {&line.recent, &line.older}) {
    if (entry->key != pending.key) continue;
    int32_t last = entry->ids[kMostIds - 1];
    if (last == -1) return ids_.push_back(entry->ids[0]);
    ids_.insert(ids_.end(), entry->ids, entry->ids + (last < 0 ? -last : static_cast<int32_t>(kMostIds)));
    return;
  }
  size_t before = ids_.size();
  bpe_.Encode(pending.piece, ids_);
  size_t count = ids_.size() - before;
  if (count > kMostIds) return;
  line.older = line.recent;
  line.recent.key = pending.key;
  std::copy(ids_.begin() + static_cast<ptrdiff_t>(before), ids_.end(), line.recent.ids);
  if (count < kMostIds) line.recent.ids[kMostIds - 1] = -static_cast<int32_t>(count);
}

}  // namespace bamba
