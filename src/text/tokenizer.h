#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/stream_decoder.h"

namespace bamba {

struct EncodeOptions {
  bool add_special = true;    // what the post-processor's template puts around a text, such as the BOS token
  bool parse_special = true;  // the strings of special tokens in the text become their ids; otherwise they are text
};

// A Hugging Face tokenizer.json with a byte-level BPE model: text to token ids and back, exactly as the `tokenizers` library does it. Immutable; any number of
// threads may use one.
class Tokenizer {
 public:
  // `path`: a tokenizer.json, or a directory that holds one. Throws Error: unreadable, malformed, or made of parts that aren't supported, each by its name.
  static Tokenizer Load(const std::string& path);

  // The same from the text of a tokenizer.json; `name` stands for the file in errors. Knows BOS and EOS only by the template and their usual names.
  static Tokenizer Parse(std::span<const char> json, const std::string& name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Any bytes: ill-formed UTF-8 passes through byte by byte. Throws Error only where the vocabulary lacks a byte or a pattern of the file can't be applied.
  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Each maximal ill-formed part becomes U+FFFD. Ids outside the vocabulary (a model may have more rows than tokens) stand for nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

  std::string_view TokenBytes(int32_t id) const;  // raw bytes, maybe a part of a character; empty outside the vocabulary
  bool IsSpecial(int32_t id) const;
  int vocab_size() const;                                          // ids are 0 … vocab_size() - 1, without holes
  std::optional<int32_t> TokenId(std::string_view content) const;  // written as in the file: "Ġthe", "<|end_of_text|>"

  // By tokenizer_config.json or special_tokens_map.json beside the file, else by the template (BOS) or the usual names.
  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  static std::unique_ptr<Parts> Build(std::span<const char> json, const std::string& name);

  std::unique_ptr<const Parts> parts_;
};

}  // namespace bamba
