#include "cli/chat_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"

namespace bamba::cli {
namespace {

using testing::HasSubstr;

std::string ErrorOf(std::string_view typed) {
  try {
    ParseChatCommand(typed);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(ChatCommandTest, CommandsAndTexts) {
  EXPECT_EQ(ParseChatCommand("/undo").verb, ChatVerb::kUndo);
  EXPECT_EQ(ParseChatCommand("/regen  ").verb, ChatVerb::kRegen);
  EXPECT_EQ(ParseChatCommand("/save  a file.bin ").argument, "a file.bin");
  for (const char* text : {"Hello", " /undo", "/usr/bin\nis a path", ""}) {
    EXPECT_EQ(ParseChatCommand(text).verb, ChatVerb::kSay) << text;
    EXPECT_EQ(ParseChatCommand(text).argument, text);
  }
  EXPECT_EQ(ParseChatCommand("//undo").verb, ChatVerb::kSay);
  EXPECT_EQ(ParseChatCommand("//undo").argument, "/undo");
}

TEST(ChatCommandTest, TildeIsHome) {
  setenv("HOME", "/home/user", 1);
  EXPECT_EQ(ParseChatCommand("/load ~/s").argument, "/home/user/s");
  EXPECT_EQ(ParseChatCommand("/load ~bob/s").argument, "~bob/s");
  unsetenv("HOME");
  EXPECT_EQ(ParseChatCommand("/load ~/s").argument, "~/s");
}

TEST(ChatCommandTest, FaultsAreNamed) {
  EXPECT_THAT(ErrorOf("/rest"), HasSubstr("no command '/rest'; did you mean '/reset'?"));
  EXPECT_THAT(ErrorOf("/xyzzy"), HasSubstr("/help"));
  EXPECT_THAT(ErrorOf("/"), HasSubstr("no command '/'"));
  EXPECT_THAT(ErrorOf("/save"), HasSubstr("/save FILE"));
  EXPECT_THAT(ErrorOf("/load \t"), HasSubstr("/load FILE"));
  EXPECT_THAT(ErrorOf("/reset all"), HasSubstr("no argument, found 'all'"));
}

TEST(ChatCommandTest, HelpNamesEveryCommand) {
  for (const char* name : {"/reset", "/save FILE", "/load FILE", "/regen", "/undo", "/quit"}) EXPECT_THAT(ChatHelp(), HasSubstr(name));
}

}  // namespace
}  // namespace bamba::cli
