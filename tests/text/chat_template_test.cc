#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/mapped_file.h"
#include "tests/support/files.h"

namespace bamba {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const Tokenizer& Small() {
  static const Tokenizer kTokenizer = Tokenizer::Load(BAMBA_SOURCE_DIR "/tests/data/small-8k");
  return kTokenizer;
}

// The same vocabulary with Llama 3's special tokens instead of the reserved ones.
const Tokenizer& WithLlamaTokens() {
  static const Tokenizer kTokenizer = [] {
    std::string json = ReadFile(BAMBA_SOURCE_DIR "/tests/data/small-8k/tokenizer.json");
    const auto rename = [&](std::string_view from, std::string_view to) {
      for (size_t at; (at = json.find(from)) != std::string::npos;) json.replace(at, from.size(), to);
    };
    rename("<|reserved_4|>", "<|start_header_id|>");
    rename("<|reserved_5|>", "<|end_header_id|>");
    rename("<|reserved_6|>", "<|eot_id|>");
    return Tokenizer::Parse(json, "llama.json");
  }();
  return kTokenizer;
}

std::vector<int32_t> Plain(const Tokenizer& tokenizer, std::string_view text) { return tokenizer.Encode(text, {.add_special = false}); }

std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// What transformers' apply_chat_template gives is the encoding of the whole rendered conversation.
TEST(ChatTemplateTest, TurnsJoinedAreTheWholeConversationEncodedAtOnce) {
  const ChatTemplate chatml("chatml", Small(), "m");
  const auto reply = Plain(Small(), "Good day.");
  EXPECT_EQ(Joined(Joined(chatml.First("Be brief.", "Hello,\n\nyou!"), reply), chatml.Next("  And then?", false)),
            Small().Encode("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello,\n\nyou!<|im_end|>\n<|im_start|>assistant\nGood day."
                           "<|im_end|>\n<|im_start|>user\n  And then?<|im_end|>\n<|im_start|>assistant\n"));

  const Tokenizer& llama = WithLlamaTokens();
  const ChatTemplate llama3("llama3", llama, "m");
  const auto answer = Plain(llama, "Good day.");
  EXPECT_EQ(Joined(Joined(llama3.First(" Be brief.\n", "\nHello "), answer), llama3.Next("And then? ", false)),
            llama.Encode("<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
                         "<|start_header_id|>assistant<|end_header_id|>\n\nGood day.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd then?<|eot_id|>"
                         "<|start_header_id|>assistant<|end_header_id|>\n\n"));
}

TEST(ChatTemplateTest, PlainTextBeginsTurnsOnNewLines) {
  const ChatTemplate none("none", Small(), "m"), transcript("transcript", Small(), "m");
  EXPECT_EQ(none.First("", "Once"), Small().Encode("Once"));
  EXPECT_EQ(none.First("A tale.", "Once"), Small().Encode("A tale.\nOnce"));
  EXPECT_EQ(none.Next("Then", false), Plain(Small(), "\nThen"));
  EXPECT_EQ(none.Next("Then", true), Plain(Small(), "Then"));
  EXPECT_EQ(transcript.First("Be brief.", "Hello"), Small().Encode("Be brief.\n\nUser: Hello\nAssistant:"));
  EXPECT_EQ(transcript.Next("And?", false), Plain(Small(), "\nUser: And?\nAssistant:"));
  EXPECT_THAT(transcript.stop(), ElementsAre("\nUser:"));
  EXPECT_THAT(none.stop(), IsEmpty());
}

// Nobody ends a turn, or speaks for the system, by typing a special token's name; in a plain text everybody may.
TEST(ChatTemplateTest, TypedNamesOfSpecialTokensStayText) {
  const int32_t end = Small().TokenId("<|im_end|>").value();
  const auto count = [&](const std::vector<int32_t>& ids) { return std::count(ids.begin(), ids.end(), end); };
  const ChatTemplate chatml("chatml", Small(), "m");
  EXPECT_EQ(count(chatml.First("a<|im_end|>b", "c<|im_end|>d")), 2) << "one for each message";
  EXPECT_THAT(Small().Decode(chatml.First("", "c<|im_end|>d")), HasSubstr("user\nc<|im_end|>d"));
  EXPECT_THAT(chatml.stop_tokens(), ElementsAre(end));
  EXPECT_EQ(count(ChatTemplate("transcript", Small(), "m").First("", "c<|im_end|>d")), 0);
  EXPECT_EQ(count(ChatTemplate("none", Small(), "m").First("", "c<|im_end|>d")), 1);
}

TEST(ChatTemplateTest, MissingSpecialTokensAreNamed) {
  try {
    ChatTemplate("llama3", Small(), "some/model");
    FAIL() << "small-8k has none of them";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("some/model"), HasSubstr("<|start_header_id|>"), HasSubstr("<|end_header_id|>"), HasSubstr("<|eot_id|>"),
                                Not(HasSubstr("<|im_"))));
  }
  EXPECT_THROW(ChatTemplate("alpaca", Small(), "m"), Error);
}

class OwnTemplateTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) { WriteFile(directory_ / name, text); }
  std::optional<OwnChatTemplate> Find() { return FindOwnChatTemplate(directory_.path()); }

  TemporaryDirectory directory_;
};

TEST_F(OwnTemplateTest, IsFoundWhereModelsKeepIt) {
  EXPECT_FALSE(Find());
  Write("tokenizer_config.json", R"({"eos_token":"<e>","chat_template":null})");
  EXPECT_FALSE(Find());
  Write("tokenizer_config.json", R"({"chat_template":"{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"})");
  EXPECT_THAT(Find()->where, HasSubstr("tokenizer_config.json: chat_template"));
  EXPECT_EQ(Find()->similar, "chatml");
  Write("tokenizer_config.json", R"({"chat_template":[{"name":"default","template":"<|start_header_id|>"}]})");
  EXPECT_EQ(Find()->similar, "llama3");
  Write("chat_template.jinja", "{{ messages }}");
  EXPECT_THAT(Find()->where, HasSubstr("chat_template.jinja"));
  EXPECT_EQ(Find()->similar, "");
}

TEST_F(OwnTemplateTest, DamagedFilesAreErrors) {
  Write("tokenizer_config.json", "{");
  EXPECT_THROW(Find(), Error);
  Write("tokenizer_config.json", "[]");
  EXPECT_THROW(Find(), Error);
}

}  // namespace
}  // namespace bamba
