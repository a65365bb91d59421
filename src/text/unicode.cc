#include "text/unicode.h"

#include <algorithm>

namespace bamba {
namespace {

#include "text/unicode_table.inc"

constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

}  // namespace

uint8_t ClassOf(char32_t code_point) {
  if (code_point > 0x10FFFF) return 0;
  return kPages[kPageOf[code_point / 256]][code_point % 256] & 15;
}

// The allowed ranges are those of the Unicode Standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
Utf8Char FirstChar(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  int length = lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
  if (length == 0) return {kReplacement, 1, false, false};
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0x7F >> length);
  for (uint8_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i == text.size()) return {kReplacement, i, false, true};
    if (byte(i) < low || byte(i) > high) return {kReplacement, i, false, false};
    code_point = code_point << 6 | (byte(i) & 0x3F);
  }
  return {code_point, static_cast<uint8_t>(length), true, false};
}

Utf8Char LastChar(std::string_view text) {
  for (size_t length = 2; length <= std::min<size_t>(4, text.size()); ++length) {
    Utf8Char c = FirstChar(text.substr(text.size() - length));
    if (c.valid && c.length == length) return c;
  }
  return FirstChar(text.substr(text.size() - 1));
}

void AppendUtf8(char32_t c, std::string& out) {
  auto trail = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6), trail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12), trail(6), trail(0);
  } else {
    out += static_cast<char>(0xF0 | c >> 18), trail(12), trail(6), trail(0);
  }
}

void AppendLossy(std::string_view bytes, std::string& out) {
  size_t clean = 0;
  for (size_t i = 0; i < bytes.size();) {
    Utf8Char c = FirstChar(bytes.substr(i));
    if (!c.valid) {
      out += bytes.substr(clean, i - clean);
      out += kReplacementUtf8;
      clean = i + c.length;
    }
    i += c.length;
  }
  out += bytes.substr(clean);
}

}  // namespace bamba
