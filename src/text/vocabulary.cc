#include "text/vocabulary.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/error.h"
#include "text/unicode.h"

namespace bamba {
namespace {

constexpr uint32_t kUnset = UINT32_MAX;
constexpr int kStandIns = 256 + 68;

// GPT-2's byte_to_unicode, reversed: bytes that Latin-1 prints stand for themselves, the others in order for U+0100, U+0101, …
constexpr std::array<int16_t, kStandIns> kByteOf = [] {
  std::array<int16_t, kStandIns> byte_of{};
  for (int16_t& b : byte_of) b = -1;
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    byte_of[printable ? b : next++] = static_cast<int16_t>(b);
  }
  return byte_of;
}();

}  // namespace

bool AppendStandInBytes(std::string_view content, std::string& bytes) {
  size_t before = bytes.size();
  for (size_t i = 0; i < content.size();) {
    if (content[i] > ' ' && content[i] <= '~') {  // most characters are ASCII and stand for themselves
      bytes += content[i++];
      continue;
    }
    Utf8Char c = FirstChar(content.substr(i));
    if (c.code_point >= kStandIns || kByteOf[c.code_point] < 0) {
      bytes.resize(before);
      return false;
    }
    bytes += static_cast<char>(kByteOf[c.code_point]);
    i += c.length;
  }
  return true;
}

uint64_t HashBytes(std::string_view s) {
  auto mix = [](uint64_t a, uint64_t b) {
    unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  uint64_t hash = s.size() * 0x9E3779B97F4A7C15;
  for (; s.size() >= 8; s.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, s.data(), 8);
    hash = mix(hash ^ word, 0xD6E8FEB86659FD93);
  }
  uint64_t tail = 0;
  for (size_t i = 0; i < s.size(); ++i) tail |= static_cast<uint64_t>(static_cast<uint8_t>(s[i])) << (8 * i);
  return mix(hash ^ tail, 0xA0761D6478BD642F);
}

Vocabulary::Vocabulary(const TokenizerJson& file, const std::vector<Added>& added) {
  bytes_.reserve(file.text.size() / 4);
  table_.resize(std::bit_ceil(2 * file.vocab.size() + 1));
  filter_.resize(std::bit_ceil(file.vocab.size() / 8 + 1));
  auto count = static_cast<int64_t>(file.vocab.size() + added.size());
  if (count > INT32_MAX) throw Error("{}: {} tokens, expected fewer than 2^31", file.path, count);
  spans_.assign(static_cast<size_t>(count), {kUnset, 0});
  for (const TokenizerJson::Token& token : file.vocab) {
    std::string_view content = file.Content(token);
    Place(content, token.id, count, file);
    auto id = static_cast<int32_t>(token.id);
    uint32_t begin = static_cast<uint32_t>(bytes_.size());
    bool byte_level = AppendStandInBytes(content, bytes_);
    if (!byte_level) bytes_ += content;
    spans_[id] = {begin, static_cast<uint32_t>(bytes_.size()) - begin};
    bool fresh = byte_level ? Insert(id) : verbatim_.emplace(content, id).second;
    if (!fresh) throw Error("{}: the vocabulary has the token '{}' twice", file.path, content);
  }
  int64_t known = 0;  // added tokens that the model has already
  for (const Added& token : added) {
    if (int32_t id = FindContent(token.content); id >= 0) {
      if (id != token.id) throw Error("{}: the token '{}' has id {} in one list and {} in another; expected one id", file.path, token.content, id, token.id);
      ++known;
      continue;
    }
    Place(token.content, token.id, count, file);
    auto id = static_cast<int32_t>(token.id);
    uint32_t begin = static_cast<uint32_t>(bytes_.size());
    if (!AppendStandInBytes(token.content, bytes_)) bytes_ += token.content;
    spans_[id] = {begin, static_cast<uint32_t>(bytes_.size()) - begin};
    verbatim_.emplace(token.content, id);
  }
  // As many ids as tokens, none twice: if none lies past the end, there is no hole.
  for (auto id = static_cast<int64_t>(spans_.size()) - known; id < static_cast<int64_t>(spans_.size()); ++id)
    if (spans_[id].begin != kUnset) FailOnId(Bytes(static_cast<int32_t>(id)), id, file);
  spans_.resize(spans_.size() - static_cast<size_t>(known));
}

void Vocabulary::Place(std::string_view content, int64_t id, int64_t count, const TokenizerJson& file) {
  if (content.empty()) throw Error("{}: the token with id {} is empty", file.path, id);
  if (id < 0 || id >= count) FailOnId(content, id, file);
  if (spans_[id].begin != kUnset) throw Error("{}: id {} belongs to two tokens, the second is '{}'", file.path, id, content);
}

void Vocabulary::FailOnId(std::string_view content, int64_t id, const TokenizerJson& file) const {
  throw Error("{}: the token '{}' has id {}, more than the tokens there are; expected ids from 0 upwards without holes", file.path, content, id);
}

bool Vocabulary::Insert(int32_t id) {
  std::string_view bytes = Bytes(id);
  auto hash = static_cast<uint32_t>(HashBytes(bytes));
  for (size_t i = hash;; ++i) {
    Slot& slot = table_[i & (table_.size() - 1)];
    if (slot.id < 0) {
      filter_[hash / 64 & (filter_.size() - 1)] |= uint64_t{1} << hash % 64;
      slot = {hash, id};
      return true;
    }
    if (slot.hash == hash && Bytes(slot.id) == bytes) return false;
  }
}

int32_t Vocabulary::FindBytes(std::string_view bytes) const {
  auto hash = static_cast<uint32_t>(HashBytes(bytes));
  if (!(filter_[hash / 64 & (filter_.size() - 1)] >> hash % 64 & 1)) return -1;
  for (size_t i = hash;; ++i) {
    const Slot& slot = table_[i & (table_.size() - 1)];
    if (slot.id < 0 || (slot.hash == hash && Bytes(slot.id) == bytes)) return slot.id;
  }
}

int32_t Vocabulary::FindContent(std::string_view content) const {
  if (auto found = verbatim_.find(content); found != verbatim_.end()) return found->second;
  std::string bytes;
  return AppendStandInBytes(content, bytes) ? FindBytes(bytes) : -1;
}

}  // namespace bamba
