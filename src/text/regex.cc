#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include "base/error.h"
#include "text/unicode.h"

namespace bamba {
namespace {

// The code points that have (or lack) `wanted`, as the inside of a bracket expression.
std::string ClassRanges(CharClass wanted, bool has) {
  std::string ranges;
  auto in = [&](char32_t c) { return c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF) && ((ClassOf(c) & wanted) != 0) == has; };
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (!in(c)) continue;
    char32_t first = c;
    while (in(c + 1)) ++c;
    ranges += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(first), static_cast<uint32_t>(c));
  }
  return ranges;
}

// Replaces \p{L}, \p{N} and their negations by explicit ranges.
std::string Translate(std::string_view pattern, const std::string& where) {
  auto refuse = [&](const char* what) { throw Error("{}: the pattern uses {}, which isn't supported here", where, what); };
  std::string out;
  int brackets = 0;
  while (!pattern.empty()) {
    size_t length = FirstChar(pattern).length;
    if (pattern[0] == '\\' && pattern.size() > 1) {
      length = 1 + FirstChar(pattern.substr(1)).length;
      std::string_view name = pattern.substr(0, 5);
      bool letters = name == "\\p{L}" || name == "\\P{L}", numbers = name == "\\p{N}" || name == "\\P{N}";
      if (letters || numbers) {
        std::string ranges = ClassRanges(letters ? kLetter : kNumber, name[1] == 'p');
        out += brackets > 0 ? ranges : "[" + ranges + "]";
        pattern.remove_prefix(5);
        continue;
      }
      if (pattern[1] == 'h' || pattern[1] == 'H') refuse("\\h (hexadecimal digit in one engine, blank in the other)");
    } else if (pattern[0] == '[') {
      if (brackets > 0 && !pattern.starts_with("[:")) refuse("a bracket expression inside another");
      if (brackets == 0) {
        brackets = 1;
        if (pattern.starts_with("[^")) length = 2;
        if (pattern.substr(length).starts_with("]")) ++length;
      } else {
        size_t close = pattern.find(":]");
        length = close == pattern.npos ? 1 : close + 2;
      }
    } else if (pattern[0] == ']') {
      brackets = 0;
    } else if (brackets > 0 && pattern.starts_with("&&")) {
      refuse("an intersection of classes (&&)");
    } else if (brackets == 0 && pattern.starts_with("}+")) {
      refuse("a + after a counted repetition");
    } else if (brackets == 0 && pattern.starts_with("(?") && pattern.find_first_not_of("imsxn-", 2) > pattern.find('m', 2)) {
      refuse("the option (?m), which means different things");
    }
    out += pattern.substr(0, length);
    pattern.remove_prefix(length);
  }
  return out;
}

std::string Message(int code) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(code, text, sizeof text) > 0 ? reinterpret_cast<const char*>(text) : "unknown error";
}

}  // namespace

Regex::Regex(std::string_view pattern, bool literal, std::string where) : where_(std::move(where)) {
  std::string translated = literal ? std::string(pattern) : Translate(pattern, where_);
  uint32_t options = PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
  int error;
  PCRE2_SIZE offset;
  auto text = reinterpret_cast<PCRE2_SPTR>(translated.data());
  code_.reset(pcre2_compile(text, translated.size(), options, &error, &offset, nullptr), pcre2_code_free);
  if (!code_) throw Error("{}: '{}' is not a regular expression that can be used: {}", where_, pattern, Message(error));
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it fails, the interpreter serves
}

void Regex::FreeMatchData::operator()(void* data) const { pcre2_match_data_free(static_cast<pcre2_match_data*>(data)); }

Regex::Cursor Regex::Start(std::string_view text) const {
  Cursor cursor{text, 0, {}, {}};
  cursor.match_data.reset(pcre2_match_data_create(1, nullptr));
  return cursor;
}

std::optional<Match> Regex::Next(Cursor& cursor) const {
  auto subject = reinterpret_cast<PCRE2_SPTR>(cursor.text.data());
  auto* data = static_cast<pcre2_match_data*>(cursor.match_data.get());
  while (cursor.at <= cursor.text.size()) {
    int found = pcre2_match(code_.get(), subject, cursor.text.size(), cursor.at, 0, data, nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = pcre2_match(code_.get(), subject, cursor.text.size(), cursor.at, PCRE2_NO_JIT, data, nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (found < 0) throw Error("{}: the pattern can't be applied to this text: {}", where_, Message(found));
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data);
    Match match{offsets[0], offsets[1]};
    if (match.begin > match.end) throw Error("{}: the pattern matches backwards (\\K in a look-around)", where_);
    bool empty = match.begin == match.end;
    cursor.at = match.end;
    if (empty) cursor.at += match.end < cursor.text.size() ? FirstChar(cursor.text.substr(match.end)).length : 1;
    if (empty && cursor.last_end == match.end) continue;
    cursor.last_end = match.end;
    return match;
  }
  return std::nullopt;
}

}  // namespace bamba
