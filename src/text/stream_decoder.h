#pragma once

#include <cstdint>
#include <string>

namespace bamba {

class Tokenizer;

// Decodes token by token. What Push and Finish return, joined, is Tokenizer::Decode of all ids; bytes that may become a character stay inside until they
// are one, or can't be any more.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  std::string Push(int32_t id);
  std::string Finish();  // what is left, as U+FFFD; the decoder is new again

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // a cut character: at most 3 bytes between calls
};

}  // namespace bamba
