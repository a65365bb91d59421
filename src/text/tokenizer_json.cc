#include "text/tokenizer_json.h"

#include <boost/json/basic_parser_impl.hpp>

#include "base/error.h"

namespace bamba {
namespace {

namespace json = boost::json;
using json::error_code;

constexpr size_t kMaxFileBytes = size_t{1} << 30;  // 60 times Llama-3's; offsets fit 32 bits

// Receives the parser's events: those inside model.vocab and model.merges go to the flat lists, all others to `tree_`.
class Handler {
 public:
  static constexpr size_t max_object_size = kMaxFileBytes, max_array_size = kMaxFileBytes, max_key_size = kMaxFileBytes, max_string_size = kMaxFileBytes;

  explicit Handler(TokenizerJson& file) : file_(file) {}

  const std::string& complaint() const { return complaint_; }

  bool on_document_begin(error_code&) {
    tree_.reset();
    return true;
  }
  bool on_document_end(error_code&) {
    file_.rest = tree_.release();
    return true;
  }

  bool on_object_begin(error_code& ec) {
    if (section_ != Section::kOther) return Refuse(ec, section_ == Section::kVocab ? "model.vocab holds an object, expected ids" : kMergeForms);
    if (depth_ == 2 && in_model_ && key_ == "vocab") return Enter(Section::kVocab, file_.has_vocab, ec);
    ++depth_;
    return true;
  }
  bool on_object_end(size_t size, error_code&) {
    --depth_;
    if (section_ == Section::kVocab) {
      section_ = Section::kOther;
      tree_.push_null();
    } else {
      tree_.push_object(size);
    }
    return true;
  }

  bool on_array_begin(error_code& ec) {
    if (section_ == Section::kVocab) return Refuse(ec, "model.vocab holds an array, expected ids");
    if (section_ == Section::kMerges && pair_open_) return Refuse(ec, kMergeForms);
    if (section_ == Section::kMerges) {
      pair_open_ = true;
      parts_ = 0;
    } else if (depth_ == 2 && in_model_ && key_ == "merges") {
      return Enter(Section::kMerges, file_.has_merges, ec);
    }
    ++depth_;
    return true;
  }
  bool on_array_end(size_t size, error_code& ec) {
    --depth_;
    if (section_ == Section::kMerges && pair_open_) {
      pair_open_ = false;
      return parts_ == 2 || Refuse(ec, kMergeForms);
    }
    if (section_ == Section::kMerges) {
      section_ = Section::kOther;
      tree_.push_null();
    } else {
      tree_.push_array(size);
    }
    return true;
  }

  bool on_key_part(json::string_view part, size_t, error_code&) {
    partial_ += std::string_view(part);
    return true;
  }
  bool on_key(json::string_view last, size_t, error_code&) {
    std::string_view key = Whole(last);
    if (section_ == Section::kVocab) {
      file_.vocab.push_back({Keep(key), static_cast<uint32_t>(key.size()), -1});
    } else {
      if (depth_ == 1) in_model_ = key == "model";
      if (depth_ == 2) key_ = key;
      tree_.push_key(key);
    }
    partial_.clear();
    return true;
  }

  bool on_string_part(json::string_view part, size_t, error_code&) {
    partial_ += std::string_view(part);
    return true;
  }
  bool on_string(json::string_view last, size_t, error_code& ec) {
    std::string_view s = Whole(last);
    if (section_ == Section::kVocab) return Refuse(ec, "model.vocab holds a string, expected ids");
    if (section_ == Section::kOther)
      tree_.push_string(s);
    else if (!AddMergePart(s))
      return Refuse(ec, kMergeForms);
    partial_.clear();
    return true;
  }

  bool on_number_part(json::string_view, error_code&) { return true; }
  bool on_int64(int64_t i, json::string_view, error_code& ec) {
    if (section_ == Section::kMerges) return Refuse(ec, kMergeForms);
    if (section_ == Section::kVocab)
      file_.vocab.back().id = i;
    else
      tree_.push_int64(i);
    return true;
  }
  bool on_uint64(uint64_t u, json::string_view, error_code& ec) {
    if (section_ != Section::kOther) return Refuse(ec, "an id of model.vocab is beyond any vocabulary");
    tree_.push_uint64(u);
    return true;
  }
  bool on_double(double d, json::string_view, error_code& ec) {
    if (section_ != Section::kOther) return Refuse(ec, "model.vocab or model.merges holds a fraction, expected integer ids and pairs of strings");
    tree_.push_double(d);
    return true;
  }
  bool on_bool(bool b, error_code& ec) {
    if (section_ != Section::kOther) return Refuse(ec, "model.vocab or model.merges holds true or false, expected ids and pairs of strings");
    tree_.push_bool(b);
    return true;
  }
  bool on_null(error_code& ec) {
    if (section_ != Section::kOther) return Refuse(ec, "model.vocab or model.merges holds null, expected ids and pairs of strings");
    tree_.push_null();
    return true;
  }
  bool on_comment_part(json::string_view, error_code&) { return true; }
  bool on_comment(json::string_view, error_code&) { return true; }

 private:
  enum class Section { kOther, kVocab, kMerges };
  static constexpr const char* kMergeForms = "model.merges holds something else than \"left right\" or [\"left\", \"right\"]";

  bool Refuse(error_code& ec, const char* complaint) {
    complaint_ = complaint;
    ec = json::error::syntax;
    return false;
  }

  bool Enter(Section section, bool& seen, error_code& ec) {
    if (seen) return Refuse(ec, "model.vocab or model.merges stands there twice");
    seen = true;
    section_ = section;
    ++depth_;
    return true;
  }

  // A string may come in parts, gathered in partial_.
  std::string_view Whole(json::string_view last) {
    if (partial_.empty()) return last;
    partial_ += std::string_view(last);
    return partial_;
  }

  uint32_t Keep(std::string_view s) {
    auto begin = static_cast<uint32_t>(file_.text.size());
    file_.text += s;
    return begin;
  }

  bool AddMergePart(std::string_view s) {
    auto size = static_cast<uint32_t>(s.size());
    if (!pair_open_) {
      size_t space = s.find(' ');
      if (space == s.npos || s.find(' ', space + 1) != s.npos) return false;
      file_.merges.push_back({Keep(s.substr(0, space)), static_cast<uint32_t>(space), size - static_cast<uint32_t>(space) - 1});
      Keep(s.substr(space + 1));
      return true;
    }
    if (parts_ == 0)
      file_.merges.push_back({Keep(s), size, 0});
    else
      Keep(s), file_.merges.back().right = size;
    return ++parts_ <= 2;
  }

  TokenizerJson& file_;
  json::value_stack tree_;
  std::string partial_, key_, complaint_;
  Section section_ = Section::kOther;
  int depth_ = 0;  // of open objects and arrays
  bool in_model_ = false, pair_open_ = false;
  int parts_ = 0;  // of the open pair
};

}  // namespace

TokenizerJson ParseTokenizerJson(std::span<const char> bytes, const std::string& path) {
  if (bytes.size() > kMaxFileBytes) throw Error("{}: {} bytes, expected a tokenizer.json of at most {}", path, bytes.size(), kMaxFileBytes);
  TokenizerJson file;
  file.path = path;
  file.text.reserve(bytes.size() / 4);
  json::basic_parser<Handler> parser(json::parse_options(), file);
  error_code ec;
  size_t parsed = parser.write_some(false, bytes.data(), bytes.size(), ec);
  if (!ec && parsed < bytes.size()) ec = json::error::extra_data;
  if (!parser.handler().complaint().empty()) throw Error("{}: {} (byte {})", path, parser.handler().complaint(), parsed);
  if (ec) throw Error("{}: not valid JSON at byte {} of {}: {}; the file may be cut short or damaged", path, parsed, bytes.size(), ec.message());
  return file;
}

}  // namespace bamba
