#include "text/vectors.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "base/mapped_file.h"
#include "text/json_fields.h"

namespace bamba {
namespace {

std::vector<int32_t> Ids(const JsonField& field) {
  std::vector<int32_t> ids;
  field.ForEach([&](const JsonField& id) {
    int64_t value = id.Integer();
    if (value < 0 || value > INT32_MAX) throw Error("{}: {} is no token id", id.where(), value);
    ids.push_back(static_cast<int32_t>(value));
  });
  return ids;
}

std::string DecodeStreaming(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

class Checker {
 public:
  explicit Checker(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void CheckCase(const JsonField& json) {
    ++report_.cases;
    if (json.Has("text")) {
      std::string_view text = json["text"].String();
      Compare(json["ids"], tokenizer_.Encode(text, {.add_special = false}));
      if (json.Has("ids_bos")) Compare(json["ids_bos"], tokenizer_.Encode(text));
      if (json.Has("ids_nospecial")) Compare(json["ids_nospecial"], tokenizer_.Encode(text, {.add_special = false, .parse_special = false}));
    }
    std::vector<int32_t> ids = Ids(json["ids"]);
    CompareText(json["decoded"], ids, false);
    CompareText(json[json.Has("decoded_skip") ? "decoded_skip" : "decoded"], ids, true);
  }

  const VectorReport& report() const { return report_; }

 private:
  void Compare(const JsonField& expected, const std::vector<int32_t>& found) {
    ++report_.fields;
    std::vector<int32_t> ids = Ids(expected);
    if (found != ids) Fail(fmt::format("{}: found [{}], expected [{}]", expected.where(), fmt::join(found, ","), fmt::join(ids, ",")));
  }

  void CompareText(const JsonField& expected, const std::vector<int32_t>& ids, bool skip_special) {
    ++report_.fields;
    std::string_view text = expected.String();
    for (const std::string& found : {tokenizer_.Decode(ids, skip_special), DecodeStreaming(tokenizer_, ids, skip_special)}) {
      if (found == text) continue;
      return Fail(fmt::format("{}: found {}, expected {}", expected.where(), boost::json::serialize(boost::json::string(found)),
                              boost::json::serialize(boost::json::string(text))));
    }
  }

  void Fail(std::string line) {
    if (report_.failed++ < static_cast<int64_t>(VectorReport::kShown)) report_.first_failures.push_back(std::move(line));
  }

  const Tokenizer& tokenizer_;
  VectorReport report_;
};

}  // namespace

VectorReport CheckVectors(const Tokenizer& tokenizer, const std::string& path) {
  std::string file = ReadFile(path);
  Checker checker(tokenizer);
  int64_t number = 0;
  for (std::string_view rest = file; !rest.empty();) {
    size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++number;
    if (line.empty()) continue;
    std::string where = fmt::format("{}:{}", path, number);
    boost::system::error_code ec;
    boost::json::value value = boost::json::parse(line, ec);
    if (ec) throw Error("{}: not valid JSON: {}", where, ec.message());
    checker.CheckCase(JsonField(&value, where));
  }
  if (checker.report().cases == 0) throw Error("{}: no cases in it, expected one JSON object a line", path);
  return checker.report();
}

}  // namespace bamba
