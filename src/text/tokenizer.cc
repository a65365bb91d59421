#include "text/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/mapped_file.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace bamba {
namespace {

// What stands around an encoded text.
struct Template {
  std::vector<int32_t> before, after;
};

std::vector<AddedToken> Where(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> some;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(some), [=](const AddedToken& t) { return t.normalized == normalized; });
  return some;
}

std::vector<Vocabulary::Added> Contents(const std::vector<AddedToken>& tokens) {
  std::vector<Vocabulary::Added> contents;
  for (const AddedToken& t : tokens) contents.push_back({t.content, t.id});
  return contents;
}

void CheckModelType(const JsonField& model, const TokenizerJson& file) {
  // Files of the first years name no type.
  std::string_view type = model["type"].IsNull() ? "BPE" : model["type"].String();
  if (type != "BPE") throw Error("{}: type '{}' isn't supported, expected BPE", model.where(), type);
  if (!file.has_vocab || !file.has_merges)
    throw Error("{}: no {}, expected the model's vocabulary and merges", model.where(), file.has_vocab ? "merges" : "vocab");
}

void CheckDecoder(const JsonField& decoder) {
  if (decoder.IsNull()) throw Error("{}: there is none, expected ByteLevel; only byte-level tokenizers are supported", decoder.where());
  std::string_view type = decoder["type"].String();
  if (type != "ByteLevel") throw Error("{}: type '{}' isn't supported, expected ByteLevel", decoder.where(), type);
}

void ReadTemplate(const JsonField& json, int32_t vocab_size, Template& out) {
  Template pieces;
  bool text_seen = false;
  json["single"].ForEach([&](const JsonField& piece) {
    if (piece.Has("Sequence")) {
      if (text_seen) throw Error("{}: the text stands twice in the template, expected once", piece.where());
      text_seen = true;
      return;
    }
    std::string_view name = piece["SpecialToken"]["id"].String();
    json["special_tokens"][name]["ids"].ForEach([&](const JsonField& field) {
      int64_t id = field.Integer();
      if (id < 0 || id >= vocab_size) throw Error("{}: id {}, expected one of the vocabulary's {} tokens", field.where(), id, vocab_size);
      (text_seen ? pieces.after : pieces.before).push_back(static_cast<int32_t>(id));
    });
  });
  if (!text_seen) throw Error("{}: the template has no place for the text", json.where());
  out.before.insert(out.before.begin(), pieces.before.begin(), pieces.before.end());
  out.after.insert(out.after.end(), pieces.after.begin(), pieces.after.end());
}

void ReadPostProcessor(const JsonField& json, int32_t vocab_size, Template& out) {
  if (json.IsNull()) return;
  std::string_view type = json["type"].String();
  if (type == "Sequence") return json["processors"].ForEach([&](const JsonField& element) { ReadPostProcessor(element, vocab_size, out); });
  if (type == "TemplateProcessing") return ReadTemplate(json, vocab_size, out);
  // ByteLevel moves offsets, which we don't have.
  if (type != "ByteLevel") throw Error("{}: type '{}' isn't supported, expected TemplateProcessing, ByteLevel or a Sequence of them", json.where(), type);
}

}  // namespace

struct Tokenizer::Parts {
  // Truncation and padding are settings of a training run, which the file happens to keep; those who load a tokenizer for a model reset them.
  Parts(const TokenizerJson& file, const JsonField& json, const std::vector<AddedToken>& added)
      : path(file.path),
        vocabulary(file, Contents(added)),
        bpe(file, vocabulary),
        pretokenizer(json["pre_tokenizer"]),
        added_first(Where(added, false)),
        added_then(Where(added, true)),
        special(static_cast<size_t>(vocabulary.size())) {
    for (const AddedToken& t : added) special[t.id] = special[t.id] || t.special;
    ReadPostProcessor(json["post_processor"], vocabulary.size(), around);
    bos = around.before.empty() ? Usual({"<|begin_of_text|>", "<s>", "<bos>"}) : std::optional(around.before[0]);
    eos = Usual({"<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>"});
  }

  std::optional<int32_t> Find(std::string_view content) const {
    int32_t id = vocabulary.FindContent(content);
    return id < 0 ? std::nullopt : std::optional(id);
  }

  std::optional<int32_t> Usual(std::initializer_list<std::string_view> names) const {
    for (std::string_view name : names)
      if (std::optional<int32_t> id = Find(name); id && special[*id]) return id;
    return std::nullopt;
  }

  // A file beside tokenizer.json; its token is a string, or an object with "content".
  void ReadNames(const std::string& config_path) {
    MappedFile config(config_path);
    boost::system::error_code ec;
    boost::json::value value = boost::json::parse({config.data(), config.size()}, ec);
    if (ec) throw Error("{}: not valid JSON: {}", config_path, ec.message());
    JsonField json(&value, config_path);
    auto read = [&](const char* key, std::optional<int32_t>& id) {
      JsonField field = json[key];
      if (field.IsNull()) return;
      std::string_view content = field.IsString() ? field.String() : field["content"].String();
      id = Find(content);
      if (!id) throw Error("{}: the token '{}' is not in {}", field.where(), content, path);
    };
    read("bos_token", bos);
    read("eos_token", eos);
  }

  std::string path;
  Vocabulary vocabulary;
  Bpe bpe;
  Pretokenizer pretokenizer;
  AddedTokenFinder added_first, added_then;
  std::vector<bool> special;  // by id
  Template around;
  std::optional<int32_t> bos, eos;
};

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer::Parts> Tokenizer::Build(std::span<const char> text, const std::string& name) {
  TokenizerJson file = ParseTokenizerJson(text, name);
  JsonField json(&file.rest, name);
  CheckModelType(json["model"], file);
  CheckDecoder(json["decoder"]);
  if (JsonField normalizer = json["normalizer"]; !normalizer.IsNull())
    throw Error("{}: type '{}' isn't supported, expected none (null)", normalizer.where(), normalizer["type"].String());
  return std::make_unique<Parts>(file, json, ReadAddedTokens(json["added_tokens"]));
}

Tokenizer Tokenizer::Parse(std::span<const char> json, const std::string& name) { return Tokenizer(Build(json, name)); }

Tokenizer Tokenizer::Load(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path file = fs::is_directory(path, ignored) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  MappedFile mapped(file.string());
  std::unique_ptr<Parts> parts = Build(mapped.bytes(), file.string());
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"})
    if (fs::path beside = file.parent_path() / name; fs::exists(beside, ignored)) parts->ReadNames(beside.string());
  return Tokenizer(std::move(parts));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  const Parts& p = *parts_;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 16);
  BpeEncoder encoder(p.bpe, text, ids);
  if (options.add_special) ids = p.around.before;
  auto encode_text = [&](std::string_view part) { p.pretokenizer.ForEachPiece(part, [&](std::string_view piece) { encoder.Append(piece); }); };
  for (const auto& [outer, outer_id] : p.added_first.Split(text, options.parse_special)) {
    if (outer_id >= 0) {
      encoder.AppendToken(outer_id);
      continue;
    }
    for (const auto& [inner, inner_id] : p.added_then.Split(outer, options.parse_special)) inner_id >= 0 ? encoder.AppendToken(inner_id) : encode_text(inner);
  }
  encoder.Flush();
  if (options.add_special) ids.insert(ids.end(), p.around.after.begin(), p.around.after.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes, text;
  for (int32_t id : ids)
    if (!skip_special || !IsSpecial(id)) bytes += TokenBytes(id);
  text.reserve(bytes.size());
  AppendLossy(bytes, text);
  return text;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const { return id < 0 || id >= vocab_size() ? std::string_view() : parts_->vocabulary.Bytes(id); }
bool Tokenizer::IsSpecial(int32_t id) const { return id >= 0 && id < vocab_size() && parts_->special[id]; }
int Tokenizer::vocab_size() const { return parts_->vocabulary.size(); }
std::optional<int32_t> Tokenizer::TokenId(std::string_view content) const { return parts_->Find(content); }
std::optional<int32_t> Tokenizer::bos() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos() const { return parts_->eos; }

}  // namespace bamba
