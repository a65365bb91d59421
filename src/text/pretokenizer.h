#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_fields.h"
#include "text/regex.h"
#include "text/scanner.h"

namespace bamba {

// Cuts text into the pieces that byte-pair encoding works on: the "pre_tokenizer" of a tokenizer.json, which is ByteLevel, or a Sequence of Splits that ends
// in ByteLevel. Immutable; any number of threads.
class Pretokenizer {
 public:
  // Throws Error: another type, another order, a pattern that can't be used.
  explicit Pretokenizer(const JsonField& json);

  // Calls emit(std::string_view) for each piece, in order. A piece is part of `text`, or lives for the call only (add_prefix_space).
  template <typename Emit>
  void ForEachPiece(std::string_view text, Emit emit) const {
    if (splits_.empty()) return ForByteLevel(text, emit);
    if (llama3_) return ForScanned<Llama3PieceLength>(text, emit);
    for (std::string_view part : Split(text)) ForByteLevel(part, emit);
  }

 private:
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  using PieceLength = size_t (*)(std::string_view);

  // One "Split": the parts that its pattern matches and those between, arranged by the behaviour.
  struct Splitter {
    PieceLength scanner = nullptr;  // of a pattern that we have a scanner for; it matches everywhere
    std::optional<Regex> regex;     // any other
    Behavior behavior;
    bool invert;
  };
  struct Part {
    size_t begin, end;
    bool matched;
  };

  template <PieceLength kLength, typename Emit>
  static void ForScanned(std::string_view text, Emit& emit) {
    while (!text.empty()) {
      size_t length = kLength(text);
      emit(text.substr(0, length));
      text.remove_prefix(length);
    }
  }

  template <typename Emit>
  void ForByteLevel(std::string_view text, Emit& emit) const {
    if (text.empty()) return;
    std::string prefixed;
    if (add_prefix_space_ && text[0] != ' ') text = prefixed.append(" ").append(text);
    if (use_gpt2_) return ForScanned<Gpt2PieceLength>(text, emit);
    emit(text);
  }

  void Add(const JsonField& json);
  void AddSplit(const JsonField& json);
  std::vector<std::string_view> Split(std::string_view text) const;
  static std::vector<Part> Parts(const Splitter& splitter, std::string_view text);

  std::vector<Splitter> splits_;
  bool llama3_ = false;            // the usual case: one Split by that pattern, then plain ByteLevel
  bool byte_level_ = false;        // seen; nothing may follow
  bool add_prefix_space_ = false;  // of ByteLevel
  bool use_gpt2_ = false;          // ByteLevel's "use_regex": cuts by kGpt2Pattern itself
};

}  // namespace bamba
