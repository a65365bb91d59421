#include <algorithm>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "text/tokenizer.h"

// Any bytes as a tokenizer.json. If they are one, a text with everything in it goes there and back; what the file's parts refuse is an Error, never a crash.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bamba;
  try {
    Tokenizer tokenizer = Tokenizer::Parse({reinterpret_cast<const char*>(data), size}, "fuzz.json");
    std::string text = "It's 12345 o'clock,\r\n\n  caf\u00e9 \u4e2d\u6587\t<s>ab ab aab</s> ";
    text.append(reinterpret_cast<const char*>(data), std::min<size_t>(size, 200));
    for (bool parse_special : {false, true}) {
      std::vector<int32_t> ids = tokenizer.Encode(text, {.add_special = true, .parse_special = parse_special});
      StreamDecoder stream(tokenizer, parse_special);
      std::string streamed;
      for (int32_t id : ids) {
        CHECK(id >= 0 && id < tokenizer.vocab_size());
        streamed += stream.Push(id);
      }
      streamed += stream.Finish();
      CHECK(streamed == tokenizer.Decode(ids, parse_special));
    }
  } catch (const Error&) {
  }
  return 0;
}
