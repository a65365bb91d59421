#include "cli/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "io/checkpoint.h"
#include "tests/support/files.h"

namespace bamba::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

void Nowhere(std::string_view) {}

class ConversationTest : public testing::Test {
 protected:
  struct Parts {
    Engine engine;
    Session session;
    ChatTemplate form;
    Conversation conversation;

    Parts(const std::string& name, Request reply, int64_t context, int64_t snapshots)
        : engine(MiniModel(), &MiniTokenizer(),
                 {.name = "mini", .execution = {.threads = 2}, .context = context, .roll_back = true, .snapshot_bytes = snapshots}),
          session(engine),
          form(name, MiniTokenizer(), "mini"),
          conversation(session, MiniTokenizer(), form, {.system = "A tale.", .context = context, .reply = std::move(reply)}) {}
  };

  static const Model& MiniModel() {
    static const Model kModel = LoadModel(BAMBA_SOURCE_DIR "/models/mini");
    return kModel;
  }
  static const Tokenizer& MiniTokenizer() {
    static const Tokenizer kTokenizer = Tokenizer::Load(BAMBA_SOURCE_DIR "/models/mini");
    return kTokenizer;
  }

  static Parts Begin(const std::string& name, Request reply = {.max_tokens = 40}, int64_t context = 512, int64_t snapshots = 1 << 28) {
    return Parts(name, std::move(reply), context, snapshots);
  }

  // The reply of an engine that reads everything before it in one piece.
  static Generation Fresh(const std::vector<int32_t>& before, Request request = {.max_tokens = 40}) {
    Engine engine(MiniModel(), &MiniTokenizer(), {.name = "mini", .context = 512});
    request.prompt = before;
    return engine.Generate(request, Nowhere);
  }
};

TEST_F(ConversationTest, ATurnReadsItsOwnTokensAndRepliesAsIfAllHadBeenReadAtOnce) {
  Parts chat = Begin("none");
  chat.conversation.Say("The lighthouse keeper", Nowhere);
  const auto before = chat.session.tokens();
  const int64_t unread = chat.session.unread();
  const auto reply = chat.conversation.Say("In the morning", Nowhere);

  auto all = before;
  const auto turn = chat.form.Next("In the morning", MiniTokenizer().Decode(before).ends_with('\n'));
  all.insert(all.end(), turn.begin(), turn.end());
  EXPECT_EQ(reply.read, unread + static_cast<int64_t>(turn.size()));
  EXPECT_LE(unread, 1);
  EXPECT_EQ(reply.generation.tokens, Fresh(all).tokens);
}

TEST_F(ConversationTest, UndoAndRegenRestoreTheStateAtTheTurnsStart) {
  Parts chat = Begin("chatml", {.max_tokens = 40, .sampling = {.temperature = 1, .seed = 5}});
  std::vector<std::vector<int32_t>> starts;
  for (const char* text : {"One", "Two", "Three"}) {
    starts.push_back(chat.session.tokens());
    chat.conversation.Say(text, Nowhere);
  }
  const auto third = chat.session.tokens();
  const auto again = chat.conversation.Regenerate(Nowhere);
  EXPECT_EQ(again.seed, 6u);
  EXPECT_NE(chat.session.tokens(), third) << "another seed";

  chat.conversation.Undo();
  EXPECT_EQ(chat.session.tokens(), starts[2]);
  chat.conversation.Say("Three", Nowhere);
  EXPECT_EQ(chat.session.tokens(), third) << "the seed of a first attempt, and the state of before";
  for (int turn = 2; turn >= 0; turn--) {
    chat.conversation.Undo();
    EXPECT_EQ(chat.session.tokens(), starts[turn]);
  }
  EXPECT_THROW(chat.conversation.Undo(), Error);
  EXPECT_THROW(chat.conversation.Regenerate(Nowhere), Error);
}

TEST_F(ConversationTest, AStopStringLeavesNoTrace) {
  const std::string whole = [] {
    Parts chat = Begin("none");
    return chat.conversation.Say("The lighthouse keeper", Nowhere).generation.text;
  }();
  ASSERT_GT(whole.size(), 40u);
  // A stop string may begin and end within tokens.
  for (size_t at : {9, 11, 13, 14}) {
    Parts chat = Begin("none", {.max_tokens = 40, .stop = {whole.substr(at, 9)}});
    const auto prompt = chat.form.First("A tale.", "The lighthouse keeper");
    const Generation g = chat.conversation.Say("The lighthouse keeper", Nowhere).generation;
    ASSERT_EQ(g.finish, FinishReason::kStop);
    EXPECT_EQ(whole.find(g.text), 0u);
    const std::span<const int32_t> reply = std::span(chat.session.tokens()).subspan(prompt.size());
    EXPECT_EQ(MiniTokenizer().Decode(reply), g.text) << at;

    auto all = chat.session.tokens();
    const auto turn = chat.form.Next("Then", g.text.ends_with('\n'));
    all.insert(all.end(), turn.begin(), turn.end());
    EXPECT_EQ(chat.conversation.Say("Then", Nowhere).generation.tokens, Fresh(all, {.max_tokens = 40, .stop = {whole.substr(at, 9)}}).tokens);
  }
}

TEST_F(ConversationTest, WhatDoesNotFitIsRefusedAndNothingChanges) {
  Parts chat = Begin("none", {.max_tokens = 100}, 64);
  const auto reply = chat.conversation.Say("Once", Nowhere);
  EXPECT_TRUE(reply.full);
  const auto before = chat.session.tokens();
  try {
    chat.conversation.Say("And a text that is longer than what is left of the context by far", Nowhere);
    FAIL() << "the context is full";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::AllOf(HasSubstr("context of 64"), HasSubstr("/undo"), HasSubstr("--context")));
  }
  EXPECT_EQ(chat.session.tokens(), before);
  EXPECT_EQ(chat.conversation.turns(), 1u);
  chat.conversation.Undo();
  EXPECT_EQ(chat.conversation.tokens(), 0);
}

TEST_F(ConversationTest, WithoutMemoryForTheStateATurnCannotBeTakenBack) {
  Parts chat = Begin("none", {.max_tokens = 5}, 512, 0);
  chat.conversation.Say("One", Nowhere);
  chat.conversation.Say("Two", Nowhere);
  const auto before = chat.session.tokens();
  EXPECT_THROW(chat.conversation.Undo(), Error);
  EXPECT_THROW(chat.conversation.Regenerate(Nowhere), Error);
  EXPECT_EQ(chat.session.tokens(), before);
  chat.conversation.Reset();
  EXPECT_EQ(chat.conversation.tokens(), 0);
}

TEST_F(ConversationTest, AFileGoesOnWithTheSameBits) {
  const TemporaryDirectory directory;
  const std::string path = directory / "session";
  Parts chat = Begin("chatml", {.max_tokens = 40, .sampling = {.temperature = 1, .seed = 5}});
  chat.conversation.Say("One", Nowhere);
  chat.conversation.Save(path);
  const auto reply = chat.conversation.Say("Two", Nowhere);

  Parts other = Begin("chatml", {.max_tokens = 40, .sampling = {.temperature = 1, .seed = 5}});
  other.conversation.Load(path);
  std::filesystem::remove(path);
  EXPECT_THROW(other.conversation.Undo(), Error);
  EXPECT_EQ(other.conversation.Say("Two", Nowhere).generation.tokens, reply.generation.tokens);
  EXPECT_EQ(other.session.tokens(), chat.session.tokens());
  EXPECT_THROW(other.conversation.Load(path), Error);
  EXPECT_EQ(other.session.tokens(), chat.session.tokens());
}

TEST_F(ConversationTest, AnInterruptEndsTheReplyAndNotTheConversation) {
  int tokens = 0;
  Parts chat = Begin("none", {.max_tokens = 60, .interrupted = [&] { return tokens >= 5; }});
  const auto reply = chat.conversation.Say("The lighthouse", [&](std::string_view) { tokens++; });
  EXPECT_EQ(reply.generation.finish, FinishReason::kInterrupted);
  EXPECT_LT(reply.generation.tokens.size(), 20u);
  tokens = -1000;
  EXPECT_EQ(chat.conversation.Say("Then", Nowhere).generation.finish, FinishReason::kLength);
}

}  // namespace
}  // namespace bamba::cli
