#include "cli/history_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/mapped_file.h"
#include "tests/support/files.h"

namespace bamba::cli {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class HistoryFileTest : public testing::Test {
 protected:
  HistoryFile Open(const std::string& path) {
    return HistoryFile(path, [this](const std::string& line) { warnings_.push_back(line); });
  }

  TemporaryDirectory root_;
  std::string path_ = root_ / "state/bamba/chat_history";
  std::vector<std::string> warnings_;
};

TEST_F(HistoryFileTest, EntriesComeBackAndOnlyTheOwnerReadsThem) {
  const std::vector<std::string> entries = {"Hello", "two\nlines\\", R"(a\nb \\)", "Zoë"};
  HistoryFile file = Open(path_);
  EXPECT_THAT(file.Load(10), IsEmpty());
  for (const std::string& entry : entries) file.Add(entry);
  EXPECT_EQ(Open(path_).Load(10), entries);
  EXPECT_THAT(Open(path_).Load(1), ElementsAre("Zoë"));
  EXPECT_EQ(fs::status(path_).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_THAT(warnings_, IsEmpty());
}

// Whoever keeps no history links it to /dev/null, whose permissions are everybody's.
TEST_F(HistoryFileTest, WhatIsNoFileStaysAsItIs) {
  fs::create_directories(fs::path(path_).parent_path());
  fs::create_symlink("/dev/null", path_);
  const fs::perms before = fs::status("/dev/null").permissions();
  HistoryFile file = Open(path_);
  EXPECT_THAT(file.Load(3), IsEmpty());
  file.Add("a");
  EXPECT_EQ(fs::status("/dev/null").permissions(), before);
  EXPECT_TRUE(fs::is_symlink(path_));
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(HistoryFileTest, ALongFileIsCut) {
  HistoryFile file = Open(path_);
  file.Load(3);
  for (int i = 0; i < 7; i++) file.Add(std::to_string(i));
  EXPECT_THAT(Open(path_).Load(3), ElementsAre("4", "5", "6"));
  EXPECT_EQ(ReadFile(path_), "4\n5\n6\n");
}

TEST_F(HistoryFileTest, WithoutAFileThereIsOneWarning) {
  fs::create_directories(path_);  // a directory in its place can't be written by root either
  HistoryFile file = Open(path_);
  EXPECT_THAT(file.Load(3), IsEmpty());
  file.Add("a"), file.Add("b");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr(path_)));
}

TEST_F(HistoryFileTest, ThePlaceIsTheStandards) {
  setenv("HOME", "/home/user", 1), setenv("XDG_STATE_HOME", "/var/state", 1);
  EXPECT_EQ(HistoryPath(), "/var/state/bamba/chat_history");
  setenv("XDG_STATE_HOME", "relative", 1);
  EXPECT_EQ(HistoryPath(), "/home/user/.local/state/bamba/chat_history");
  unsetenv("XDG_STATE_HOME"), unsetenv("HOME");
  EXPECT_EQ(HistoryPath(), "");
  Open("").Add("nowhere");
  EXPECT_THAT(warnings_, SizeIs(1));
}

}  // namespace
}  // namespace bamba::cli
