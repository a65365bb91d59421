#include "text/pretokenizer.h"

#include <algorithm>

#include "base/error.h"

namespace bamba {

Pretokenizer::Pretokenizer(const JsonField& json) {
  if (json.IsNull()) throw Error("{}: there is none, expected one that ends in ByteLevel; only byte-level tokenizers are supported", json.where());
  Add(json);
  if (!byte_level_) throw Error("{}: no ByteLevel in it; only byte-level tokenizers are supported", json.where());
  const bool plain_byte_level = !add_prefix_space_ && !use_gpt2_;
  llama3_ = plain_byte_level && splits_.size() == 1 && splits_[0].scanner == Llama3PieceLength && splits_[0].behavior == Behavior::kIsolated;
}

void Pretokenizer::Add(const JsonField& json) {
  std::string_view type = json["type"].String();
  if (type == "Sequence") return json["pretokenizers"].ForEach([&](const JsonField& element) { Add(element); });
  if (byte_level_) throw Error("{}: {} after ByteLevel, expected ByteLevel at the end", json.where(), type);
  if (type == "Split") return AddSplit(json);
  if (type != "ByteLevel") throw Error("{}: type '{}' isn't supported, expected Split, ByteLevel or a Sequence of them", json.where(), type);
  byte_level_ = true;
  add_prefix_space_ = json["add_prefix_space"].BoolOr(true);
  use_gpt2_ = json["use_regex"].BoolOr(true);
}

void Pretokenizer::AddSplit(const JsonField& json) {
  Splitter splitter;
  JsonField pattern = json["pattern"];
  const bool literal = pattern.Has("String");
  std::string_view text = pattern[literal ? "String" : "Regex"].String();
  if (!literal && text == kLlama3Pattern) {
    splitter.scanner = Llama3PieceLength;
  } else if (!literal && text == kGpt2Pattern) {
    splitter.scanner = Gpt2PieceLength;
  } else {
    splitter.regex.emplace(text, literal, pattern.where());
  }
  constexpr std::string_view kNames[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  std::string_view behavior = json["behavior"].String();
  const auto* name = std::find(std::begin(kNames), std::end(kNames), behavior);
  if (name == std::end(kNames))
    throw Error("{}: behavior '{}', expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous", json.where(), behavior);
  splitter.behavior = static_cast<Behavior>(name - kNames);
  splitter.invert = json["invert"].BoolOr(false);
  splits_.push_back(std::move(splitter));
}

std::vector<std::string_view> Pretokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> parts{text};
  for (const Splitter& splitter : splits_) {
    std::vector<std::string_view> finer;
    for (std::string_view part : parts)
      for (const Part& p : Parts(splitter, part))
        if (p.begin < p.end) finer.push_back(part.substr(p.begin, p.end - p.begin));
    parts = std::move(finer);
  }
  return parts;
}

std::vector<Pretokenizer::Part> Pretokenizer::Parts(const Splitter& splitter, std::string_view text) {
  std::vector<Part> parts;
  size_t done = 0;
  auto add_match = [&](Match match) {
    if (done < match.begin) parts.push_back({done, match.begin, splitter.invert});
    parts.push_back({match.begin, match.end, !splitter.invert});
    done = match.end;
  };
  if (splitter.scanner) {
    while (done < text.size()) add_match({done, done + splitter.scanner(text.substr(done))});
  } else {
    splitter.regex->ForEachMatch(text, add_match);
  }
  if (done < text.size()) parts.push_back({done, text.size(), splitter.invert});

  // Each behaviour keeps parts or joins some with their neighbour; of matches in a row, only the one beside a gap is joined to it.
  std::vector<Part> out;
  switch (splitter.behavior) {
    case Behavior::kIsolated: return parts;
    case Behavior::kRemoved: std::erase_if(parts, [](const Part& p) { return p.matched; }); return parts;
    case Behavior::kContiguous:
      for (const Part& p : parts) {
        if (!out.empty() && out.back().matched == p.matched)
          out.back().end = p.end;
        else
          out.push_back(p);
      }
      return out;
    case Behavior::kMergedWithPrevious:
      for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i].matched && i > 0 && !parts[i - 1].matched)
          out.back().end = parts[i].end;
        else
          out.push_back(parts[i]);
      }
      return out;
    case Behavior::kMergedWithNext:
      for (size_t i = 0; i < parts.size(); ++i) {
        if (i > 0 && parts[i - 1].matched && !parts[i].matched)
          out.back().end = parts[i].end;
        else
          out.push_back(parts[i]);
      }
      return out;
  }
  return out;
}

}  // namespace bamba
