#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;

namespace bamba {

struct Match {
  size_t begin, end;  // bytes
};

// A regular expression of a tokenizer.json, run by PCRE2. Those files are written for Oniguruma (Ruby syntax): ^ and $ match at lines; \p{L} and \p{N} are
// Unicode 16's, by our table, all other classes those of the installed PCRE2; constructs that the two engines read differently are refused.
// Ill-formed UTF-8 is matched by nothing. Immutable; any number of threads.
class Regex {
 public:
  // `literal`: the pattern is plain text. `where` names the place for errors. Throws Error.
  Regex(std::string_view pattern, bool literal, std::string where);

  // All matches from left to right, none overlapping, as iterating in Oniguruma's binding does: an empty match directly after a match does not count.
  template <typename Emit>
  void ForEachMatch(std::string_view text, Emit emit) const {
    Cursor cursor = Start(text);
    while (std::optional<Match> match = Next(cursor)) emit(*match);
  }

 private:
  struct FreeMatchData {
    void operator()(void* data) const;
  };
  struct Cursor {
    std::string_view text;
    size_t at = 0;
    std::optional<size_t> last_end;
    std::unique_ptr<void, FreeMatchData> match_data;
  };

  Cursor Start(std::string_view text) const;
  std::optional<Match> Next(Cursor& cursor) const;

  std::shared_ptr<pcre2_real_code_8> code_;
  std::string where_;
};

}  // namespace bamba
