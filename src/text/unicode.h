#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bamba {

// Character classes of Unicode 16.0, as the regular expressions of tokenizer.json files mean them; bits, since a numeral may also be a word character.
enum CharClass : uint8_t {
  kLetter = 1,  // \p{L}
  kNumber = 2,  // \p{N}
  kSpace = 4,   // \s
  kWord = 8,    // \w: alphabetic, mark, decimal digit, connector punctuation
};

uint8_t ClassOf(char32_t code_point);

// The first character of a text, or the first ill-formed part of it: the longest start of a possible character (as many bytes as one U+FFFD stands
// for), at least one byte.
struct Utf8Char {
  char32_t code_point;  // kReplacement where ill-formed
  uint8_t length;       // bytes
  bool valid;
  bool cut;  // ill-formed only because the text ends here
};

inline constexpr char32_t kReplacement = 0xFFFD;

Utf8Char FirstChar(std::string_view text);  // text is not empty
Utf8Char LastChar(std::string_view text);   // likewise, from the end

void AppendUtf8(char32_t code_point, std::string& out);

// Appends `bytes` to `out`, each ill-formed part (see Utf8Char) as U+FFFD.
void AppendLossy(std::string_view bytes, std::string& out);

}  // namespace bamba
