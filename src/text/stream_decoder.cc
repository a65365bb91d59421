#include "text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace bamba {
namespace {

// The length of the cut character that `bytes` ends in, or 0.
size_t CutTail(std::string_view bytes) {
  for (size_t length = std::min<size_t>(3, bytes.size()); length > 0; --length) {
    Utf8Char c = FirstChar(bytes.substr(bytes.size() - length));
    if (c.cut && c.length == length) return length;
  }
  return 0;
}

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return {};
  pending_ += tokenizer_->TokenBytes(id);
  size_t whole = pending_.size() - CutTail(pending_);
  std::string text;
  AppendLossy(std::string_view(pending_).substr(0, whole), text);
  pending_.erase(0, whole);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  AppendLossy(std::exchange(pending_, {}), text);
  return text;
}

}  // namespace bamba
