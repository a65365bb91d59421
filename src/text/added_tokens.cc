#include "text/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "text/unicode.h"

namespace bamba {
namespace {

bool EndsWithWord(std::string_view text) { return !text.empty() && (ClassOf(LastChar(text).code_point) & kWord); }
bool StartsWithWord(std::string_view text) { return !text.empty() && (ClassOf(FirstChar(text).code_point) & kWord); }

size_t TrailingSpace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    Utf8Char c = LastChar(text.substr(0, end));
    if (!(ClassOf(c.code_point) & kSpace)) break;
    end -= c.length;
  }
  return text.size() - end;
}

size_t LeadingSpace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    Utf8Char c = FirstChar(text.substr(at));
    if (!(ClassOf(c.code_point) & kSpace)) break;
    at += c.length;
  }
  return at;
}

}  // namespace

std::vector<AddedToken> ReadAddedTokens(const JsonField& json) {
  std::vector<AddedToken> tokens;
  if (json.IsNull()) return tokens;
  json.ForEach([&](const JsonField& t) {
    int64_t id = t["id"].Integer();
    std::string_view content = t["content"].String();
    if (id < 0 || id > INT32_MAX) throw Error("{}: id {}, expected one within the vocabulary", t.where(), id);
    if (content.empty()) throw Error("{}: empty content", t.where());
    const bool special = t["special"].BoolOr(false);
    tokens.push_back({std::string(content), static_cast<int32_t>(id), t["single_word"].BoolOr(false), t["lstrip"].BoolOr(false), t["rstrip"].BoolOr(false),
                      t["normalized"].BoolOr(!special), special});
  });
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) starts_[static_cast<uint8_t>(token.content[0])] = true;
  if (std::count(std::begin(starts_), std::end(starts_), true) == 1) only_start_ = static_cast<uint8_t>(tokens_[0].content[0]);
}

size_t AddedTokenFinder::NextStart(std::string_view text, size_t from) const {
  if (only_start_ >= 0) return std::min(text.find(static_cast<char>(only_start_), from), text.size());
  while (from < text.size() && !starts_[static_cast<uint8_t>(text[from])]) ++from;
  return from;
}

// Narrows the sorted tokens byte by byte to those that begin like the text.
const AddedToken* AddedTokenFinder::LongestAt(std::string_view text) const {
  const AddedToken* longest = nullptr;
  auto first = tokens_.begin(), last = tokens_.end();
  for (size_t i = 0; i < text.size() && first != last; ++i) {
    auto byte = [i](const AddedToken& t) { return i < t.content.size() ? static_cast<uint8_t>(t.content[i]) : -1; };
    int wanted = static_cast<uint8_t>(text[i]);
    first = std::partition_point(first, last, [&](const AddedToken& t) { return byte(t) < wanted; });
    last = std::partition_point(first, last, [&](const AddedToken& t) { return byte(t) == wanted; });
    if (first != last && first->content.size() == i + 1) longest = &*first;
  }
  return longest;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::Split(std::string_view text, bool parse_special) const {
  std::vector<Part> parts;
  size_t done = 0;  // text before this is in parts
  for (size_t at = tokens_.empty() ? text.size() : NextStart(text, 0); at < text.size();) {
    const AddedToken* token = LongestAt(text.substr(at));
    if (token == nullptr) {
      at = NextStart(text, at + 1);
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = NextStart(text, end);  // a token that is refused below still hides those that overlap it
    if (token->special && !parse_special) continue;
    if (token->single_word && (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) continue;
    if (token->lstrip) begin = std::max(begin - TrailingSpace(text.substr(0, begin)), done);
    if (token->rstrip) end += LeadingSpace(text.substr(end));
    if (done < begin) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
  return parts;
}

}  // namespace bamba
