#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "text/unicode.h"

// Hand-written matchers for two regular expressions that cut text into pieces for byte-pair encoding. Both match at every position, so a text is a
// sequence of pieces; each function returns the length of the first one (text is not empty). Ill-formed UTF-8 counts as characters of no class.
namespace bamba {

inline constexpr std::string_view kLlama3Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
inline constexpr std::string_view kGpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

namespace scanner {

inline constexpr uint8_t kManyBytes = 0x80;  // in kAscii: the byte begins (or breaks) a longer character

inline constexpr std::array<uint8_t, 256> kAscii = [] {
  std::array<uint8_t, 256> classes{};
  for (int c = 0; c < 256; ++c) {
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'), digit = c >= '0' && c <= '9', space = c == ' ' || (c >= '\t' && c <= '\r');
    classes[c] = c >= 0x80 ? kManyBytes : letter ? kLetter : digit ? kNumber : space ? kSpace : 0;
  }
  return classes;
}();

struct Char {
  uint8_t classes;  // of kLetter, kNumber, kSpace
  uint8_t length;
};

inline Char LongCharAt(std::string_view text, size_t at) {
  // The usual case by hand: three bytes, well-formed whatever follows the lead.
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  if (text.size() - at >= 3 && byte(0) > 0xE0 && byte(0) < 0xED && (byte(1) & 0xC0) == 0x80 && (byte(2) & 0xC0) == 0x80) {
    char32_t code_point = static_cast<char32_t>((byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F));
    return {static_cast<uint8_t>(ClassOf(code_point) & (kLetter | kNumber | kSpace)), 3};
  }
  Utf8Char c = FirstChar(text.substr(at));
  return {c.valid ? static_cast<uint8_t>(ClassOf(c.code_point) & (kLetter | kNumber | kSpace)) : uint8_t{0}, c.length};
}

inline Char CharAt(std::string_view text, size_t at) {
  uint8_t classes = kAscii[static_cast<uint8_t>(text[at])];
  return classes & kManyBytes ? LongCharAt(text, at) : Char{classes, 1};
}

// The end of the run from `at` of characters whose classes, cut down to `mask`, equal `wanted`.
inline size_t RunEnd(std::string_view text, size_t at, uint8_t mask, uint8_t wanted) {
  while (at < text.size()) {
    uint8_t classes = kAscii[static_cast<uint8_t>(text[at])];
    if (!(classes & kManyBytes)) {
      if ((classes & mask) != wanted) break;
      ++at;
      continue;
    }
    Char c = LongCharAt(text, at);
    if ((c.classes & mask) != wanted) break;
    at += c.length;
  }
  return at;
}

// Eight ASCII letters at a time: words are short and of any length, so a loop over their bytes would be mispredicted at each one's end.
inline size_t LetterRunEnd(std::string_view text, size_t at) {
  constexpr uint64_t kEach = 0x0101010101010101, kTop = 0x80 * kEach;
  while (text.size() - at >= 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    uint64_t low = (word | 0x20 * kEach) & ~kTop;                                             // lower case, if it is a letter
    uint64_t letters = (low + (0x80 - 'a') * kEach) & ~(low + (0x7F - 'z') * kEach) & ~word;  // top bits: from 'a', not past 'z', ASCII
    uint64_t others = ~letters & kTop;
    if (others != 0) {
      at += static_cast<size_t>(std::countr_zero(others)) / 8;
      if (!(static_cast<uint8_t>(text[at]) & kManyBytes)) return at;
      break;
    }
    at += 8;
  }
  return RunEnd(text, at, kLetter, kLetter);
}
inline size_t NumberRunEnd(std::string_view text, size_t at) { return RunEnd(text, at, kNumber, kNumber); }
inline size_t OtherRunEnd(std::string_view text, size_t at) { return RunEnd(text, at, kLetter | kNumber | kSpace, 0); }
inline bool IsNewline(char c) { return c == '\n' || c == '\r'; }

// 's 't 're 've 'm 'll 'd at the start of text: its length, or 0.
template <bool kAnyCase>
size_t ContractionLength(std::string_view text) {
  if (text.size() < 2) return 0;
  auto fold = [](char c) { return static_cast<char>(kAnyCase && c >= 'A' && c <= 'Z' ? c | 0x20 : c); };
  char first = fold(text[1]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (kAnyCase && text.substr(1).starts_with("\u017F")) return 3;  // ſ, the long s, is a case of s
  if (text.size() < 3) return 0;
  char second = fold(text[2]);
  return (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l') ? 3 : 0;
}

// \s+(?!\S)|\s+ where text starts with white space that ends at `end`: a run before a non-space leaves its last character to it.
inline size_t SpaceLength(std::string_view text, size_t end) {
  if (end == text.size()) return end;
  size_t last = LastChar(text.substr(0, end)).length;
  return last == end ? end : end - last;
}

}  // namespace scanner

// kLlama3Pattern.
inline size_t Llama3PieceLength(std::string_view text) {
  using namespace scanner;
  Char c = CharAt(text, 0);
  if (c.classes & kLetter) return LetterRunEnd(text, c.length);
  if (c.classes & kNumber) {
    size_t end = c.length;
    for (int digits = 1; digits < 3 && end < text.size(); ++digits) {
      Char next = CharAt(text, end);
      if (!(next.classes & kNumber)) break;
      end += next.length;
    }
    return end;
  }
  if (text[0] == '\'') {
    if (size_t length = ContractionLength<true>(text)) return length;
  }
  if (c.length < text.size() && !IsNewline(text[0])) {
    Char next = CharAt(text, c.length);
    if (next.classes & kLetter) return LetterRunEnd(text, c.length + next.length);
    bool symbols_after_space = text[0] == ' ' && next.classes == 0;
    if (symbols_after_space) c = {0, static_cast<uint8_t>(1 + next.length)};
  }
  if (c.classes == 0) {
    size_t end = OtherRunEnd(text, c.length);
    while (end < text.size() && IsNewline(text[end])) ++end;
    return end;
  }
  size_t end = RunEnd(text, c.length, kSpace, kSpace);
  size_t newline = text.substr(0, end).find_last_of("\r\n");
  return newline != text.npos ? newline + 1 : SpaceLength(text, end);
}

// kGpt2Pattern.
inline size_t Gpt2PieceLength(std::string_view text) {
  using namespace scanner;
  if (text[0] == '\'') {
    if (size_t length = ContractionLength<false>(text)) return length;
  }
  Char c = CharAt(text, 0);
  size_t start = c.length;
  if (text[0] == ' ' && text.size() > 1) {
    Char next = CharAt(text, 1);
    if (!(next.classes & kSpace)) c = next, start = 1 + next.length;
  }
  if (c.classes & kLetter) return LetterRunEnd(text, start);
  if (c.classes & kNumber) return NumberRunEnd(text, start);
  if (c.classes == 0) return OtherRunEnd(text, start);
  return SpaceLength(text, RunEnd(text, start, kSpace, kSpace));
}

}  // namespace bamba
