#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/mapped_file.h"

namespace bamba {
namespace {

const std::string kSmall8k = BAMBA_SOURCE_DIR "/tests/data/small-8k";

// A tokenizer.json of a few tokens, of which each test replaces one part.
struct Parts {
  std::string vocab = R"({"a":0,"b":1,"ab":2})", merges = R"([["a","b"]])", added = "[]", model = "", normalizer = "null", decoder = R"({"type":"ByteLevel"})",
              pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})", post_processor = "null", type = "BPE";

  std::string Json() const {
    return R"({"added_tokens":)" + added + R"(,"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer + R"(,"post_processor":)" +
           post_processor + R"(,"decoder":)" + decoder + R"(,"model":{"type":")" + type + '"' + model + R"(,"vocab":)" + vocab + R"(,"merges":)" + merges +
           "}}";
  }
};

Tokenizer Parse(const std::string& json) { return Tokenizer::Parse(json, "t.json"); }

std::string ErrorOfJson(const std::string& json) {
  try {
    Parse(json);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string ErrorOf(const Parts& parts) { return ErrorOfJson(parts.Json()); }

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(TokenizerTest, TheSmallestOneWorks) { EXPECT_THAT(Parse(Parts().Json()).Encode("abba"), ElementsAre(2, 1, 0)); }

TEST(TokenizerTest, RefusesAVocabularyThatIsNone) {
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":3})"}), AllOf(StartsWith("t.json: "), HasSubstr("'ab' has id 3")));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":1})"}), HasSubstr("id 1 belongs to two tokens"));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":2,"a":3})"}), HasSubstr("'a' twice"));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":-2})"}), HasSubstr("id -2"));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":99999999999999999999})"}), HasSubstr("t.json: "));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":1.5})"}), HasSubstr("fraction"));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":null})"}), HasSubstr("null"));
  EXPECT_THAT(ErrorOf({.vocab = R"({"a":0,"b":1,"ab":2,"":3})"}), HasSubstr("empty"));
  EXPECT_THAT(ErrorOf({.vocab = "[]"}), HasSubstr("no vocab"));
}

TEST(TokenizerTest, RefusesMergesThatCannotBe) {
  EXPECT_THAT(ErrorOf({.merges = R"([["a","c"]])"}), HasSubstr("needs the token 'c'"));
  EXPECT_THAT(ErrorOf({.merges = R"([["b","a"]])"}), HasSubstr("needs the token 'ba'"));
  EXPECT_THAT(ErrorOf({.merges = R"([["","a"]])"}), HasSubstr("never end"));
  EXPECT_THAT(ErrorOf({.merges = R"(["a b","a b"])"}), HasSubstr("listed twice"));
  for (const char* merges : {R"(["ab"])", R"(["a b c"])", R"([["a"]])", R"([["a","b","ab"]])", R"([[["a"],"b"]])", R"([{"a":"b"}])", "[1]"})
    EXPECT_THAT(ErrorOf({.merges = merges}), HasSubstr("model.merges")) << merges;
  EXPECT_THAT(ErrorOf({.merges = "null"}), HasSubstr("no merges"));
}

TEST(TokenizerTest, RefusesAddedTokensThatContradictTheVocabulary) {
  EXPECT_THAT(ErrorOf({.added = R"([{"id":2,"content":"<s>"}])"}), HasSubstr("id 2 belongs to two tokens"));
  EXPECT_THAT(ErrorOf({.added = R"([{"id":3,"content":"ab"}])"}), HasSubstr("'ab' has id 2 in one list and 3 in another"));
  EXPECT_THAT(ErrorOf({.added = R"([{"id":2147483647,"content":"<s>"}])"}), HasSubstr("without holes"));
  EXPECT_THAT(ErrorOf({.added = R"([{"id":3,"content":""}])"}), HasSubstr("empty content"));
}

TEST(TokenizerTest, RefusesByNameWhatIsNotBuilt) {
  EXPECT_THAT(ErrorOf({.type = "Unigram"}), HasSubstr("'Unigram'"));
  EXPECT_THAT(ErrorOf({.normalizer = R"({"type":"NFC"})"}), HasSubstr("'NFC'"));
  EXPECT_THAT(ErrorOf({.decoder = R"({"type":"Metaspace"})"}), HasSubstr("'Metaspace'"));
  EXPECT_THAT(ErrorOf({.pre_tokenizer = R"({"type":"Whitespace"})"}), HasSubstr("'Whitespace'"));
  EXPECT_THAT(ErrorOf({.pre_tokenizer = "null"}), HasSubstr("pre_tokenizer"));
  EXPECT_THAT(ErrorOf({.post_processor = R"({"type":"BertProcessing"})"}), HasSubstr("'BertProcessing'"));
  EXPECT_THAT(ErrorOf({.model = R"(,"dropout":0.1)"}), HasSubstr("dropout"));
  EXPECT_THAT(ErrorOf({.model = R"(,"end_of_word_suffix":"</w>")"}), HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(ErrorOf({.model = R"(,"byte_fallback":true)"}), HasSubstr("byte_fallback"));
  EXPECT_EQ(ErrorOf({.model = R"(,"dropout":0.0,"end_of_word_suffix":"","byte_fallback":false,"unk_token":null)"}), "no error");
}

TEST(TokenizerTest, RefusesPatternsThatTheEnginesReadDifferently) {
  for (const char* pattern : {"(", R"(\\h)", "[a[b]]", "[a&&b]", "a{1,3}+", "(?m).", "(?im)."}) {
    std::string split = std::string(R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")") + pattern +
                        R"("},"behavior":"Isolated"},{"type":"ByteLevel"}]})";
    EXPECT_THAT(ErrorOf({.pre_tokenizer = split}), HasSubstr("pretokenizers[0].pattern")) << pattern;
  }
}

TEST(TokenizerTest, RefusesWhatIsNoJson) {
  std::string json = Parts().Json();
  for (size_t cut : {size_t{0}, size_t{1}, json.size() / 2, json.size() - 1}) EXPECT_THAT(ErrorOfJson(json.substr(0, cut)), HasSubstr("not valid JSON")) << cut;
  EXPECT_THAT(ErrorOfJson(json + "x"), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorOfJson(std::string(100000, '[')), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorOfJson("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(ErrorOfJson(R"({"model":{"vocab":{)" + std::string(1, '\xFF')), HasSubstr("not valid JSON"));
}

TEST(TokenizerTest, AByteWithoutATokenIsUnknownOrAnError) {
  EXPECT_THAT(Parse(Parts{.model = R"(,"unk_token":"b")"}.Json()).Encode("axxa"), ElementsAre(2, 1, 0));  // the unknown token merges like any
  EXPECT_THROW(Parse(Parts().Json()).Encode("axa"), Error);
}

TEST(TokenizerTest, AnyBytesComeBack) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  std::string all;
  for (int round = 0; round < 3; ++round)
    for (int b = 0; b < 256; ++b) all += static_cast<char>(b * (2 * round + 1));
  std::string bytes;
  for (int32_t id : t.Encode(all, {.add_special = false})) bytes += t.TokenBytes(id);
  EXPECT_EQ(bytes, all);
}

TEST(TokenizerTest, IllFormedPartsDecodeAsOneReplacementEach) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  auto there_and_back = [&](std::string_view text) { return t.Decode(t.Encode(text, {.add_special = false})); };
  EXPECT_EQ(there_and_back("a\xE4\xB8z"), "a\uFFFDz");                                  // a cut character is one part
  EXPECT_EQ(there_and_back("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");                      // overlong: no byte can start it
  EXPECT_EQ(there_and_back("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");                      // a surrogate
  EXPECT_EQ(there_and_back("\xF0\x9F\x98\xF0\x9F\x98\x80"), "\uFFFD\U0001F600");        // cut, then whole
  EXPECT_EQ(there_and_back("\xF4\x90\x80\x80\xC1"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");  // past U+10FFFF
}

TEST(TokenizerTest, StreamsWholeCharactersOnly) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  std::string text = "na\u00EFve \u4E2D\u6587 \U0001F600\U0001F468\u200D\U0001F469";
  StreamDecoder stream(t, true);
  std::string joined;
  int held_back = 0;
  for (int32_t id : t.Encode(text)) {
    std::string part = stream.Push(id);
    EXPECT_EQ(part.find("\uFFFD"), std::string::npos);
    held_back += part.empty();
    joined += part;
  }
  EXPECT_EQ(joined, text);
  EXPECT_EQ(stream.Finish(), "");
  EXPECT_GT(held_back, 4);  // the 8k vocabulary has no token for these characters

  EXPECT_EQ(stream.Push(*t.TokenId("ð")), "");  // the byte F0
  EXPECT_EQ(stream.Finish(), "\uFFFD");
}

TEST(TokenizerTest, KnowsItsSpecialTokens) {
  Tokenizer t = Tokenizer::Load(kSmall8k + "/tokenizer.json");
  EXPECT_EQ(t.vocab_size(), 8192);
  EXPECT_EQ(t.bos(), 0);
  EXPECT_EQ(t.eos(), 1);
  EXPECT_EQ(t.TokenId("<|im_end|>"), 3);
  EXPECT_EQ(t.TokenId("no such token"), std::nullopt);
  EXPECT_TRUE(t.IsSpecial(3));
  EXPECT_FALSE(t.IsSpecial(300));
  EXPECT_FALSE(t.IsSpecial(-1));
  EXPECT_EQ(t.TokenBytes(8192), "");
  EXPECT_EQ(t.Decode(std::vector<int32_t>{2, 8192, -7}), "<|im_start|>");
}

TEST(TokenizerTest, EmptyTextIsTheTemplate) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  EXPECT_THAT(t.Encode(""), ElementsAre(0));
  EXPECT_THAT(t.Encode("", {.add_special = false}), ElementsAre());
}

TEST(TokenizerTest, ThreadsShareOne) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  std::string text = ReadFile(kSmall8k + "/vectors.jsonl");
  std::vector<int32_t> expected = t.Encode(text);
  std::vector<std::vector<int32_t>> found(4);
  std::vector<std::thread> threads;
  for (auto& ids : found) threads.emplace_back([&] { ids = t.Encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& ids : found) EXPECT_EQ(ids, expected);
}

// A piece without a break must not cost the square of its length, which for a megabyte is minutes.
TEST(TokenizerTest, LongPiecesAreNotQuadratic) {
  Tokenizer t = Tokenizer::Load(kSmall8k);
  std::string text(1 << 20, 'a');
  auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(t.Decode(t.Encode(text, {.add_special = false})), text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace bamba
