#include "base/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/support/files.h"

namespace bamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_ / name; }
  void Put(const std::string& name, const std::string& text) const { std::ofstream(Path(name), std::ios::binary) << text; }
  size_t Files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(directory_.path()), fs::directory_iterator())); }

  TemporaryDirectory directory_;
};

TEST_F(FileTest, MapsAndReadsTheSameBytes) {
  std::string text("a\0b\xff\n", 5);
  Put("f", text);
  MappedFile mapped(Path("f"));
  EXPECT_EQ(std::string(mapped.data(), mapped.size()), text);
  EXPECT_EQ(ReadFile(Path("f")), text);
  MappedFile moved = std::move(mapped);
  EXPECT_EQ(mapped.data(), nullptr);
  EXPECT_EQ(moved.bytes().size(), 5u);
}

// Any part of a file may be expected, and other memory too.
TEST_F(FileTest, ExpectingToReadChangesNothing) {
  const std::string text(100'000, 'x');
  Put("f", text);
  const MappedFile file(Path("f"));
  ExpectReading(file.data() + 4097, 80'001);
  ExpectReading(file.data(), file.size());
  ExpectReading(text.data(), text.size());
  EXPECT_TRUE(std::equal(text.begin(), text.end(), file.data(), file.data() + file.size()));
}

TEST_F(FileTest, ReadsFilesLargerThanItsFirstGuess) {
  std::string text(3'000'001, 'x');
  text.back() = 'y';
  Put("f", text);
  EXPECT_EQ(ReadFile(Path("f")), text);
}

// The size of such a file is unknown before its end: the system shows 0.
TEST_F(FileTest, ReadsFilesWithoutASize) { EXPECT_THAT(ReadFile("/proc/self/status"), HasSubstr("Threads:")); }

TEST_F(FileTest, EmptyFilesAreEmpty) {
  Put("f", "");
  EXPECT_EQ(MappedFile(Path("f")).size(), 0u);
  EXPECT_EQ(ReadFile(Path("f")), "");
}

TEST_F(FileTest, WhatCannotBeReadIsNamed) {
  EXPECT_THAT(ErrorOf([&] { MappedFile(Path("none")); }), HasSubstr("none: cannot be opened: No such file"));
  EXPECT_THAT(ErrorOf([&] { ReadFile(Path("none")); }), HasSubstr("none: cannot be opened: No such file"));
  EXPECT_THAT(ErrorOf([&] { MappedFile{directory_.path()}; }), HasSubstr("is a directory"));
  EXPECT_THAT(ErrorOf([&] { ReadFile(directory_.path()); }), HasSubstr("directory"));
  EXPECT_THAT(ErrorOf([&] { MappedFile("/dev/null"); }), HasSubstr("not a regular file"));
}

TEST_F(FileTest, WriterReplacesOnlyOnCommit) {
  Put("f", "old");
  FileWriter w(Path("f"));
  w.Write("ne");
  w.Write("w");
  EXPECT_EQ(ReadFile(Path("f")), "old");
  w.Commit();
  EXPECT_EQ(ReadFile(Path("f")), "new");
  EXPECT_EQ(Files(), 1u);
}

TEST_F(FileTest, WriterWithoutCommitLeavesNothing) {
  Put("f", "old");
  {
    FileWriter w(Path("f"));
    w.Write("half");
    EXPECT_EQ(Files(), 2u);
  }
  EXPECT_EQ(ReadFile(Path("f")), "old");
  EXPECT_EQ(Files(), 1u);
}

// What a killed writer left goes with the next; what a running one writes, and what only looks alike, stays.
TEST_F(FileTest, WriterRemovesWhatKilledOnesLeft) {
  const pid_t gone = fork();
  if (gone == 0) _exit(0);
  ASSERT_EQ(waitpid(gone, nullptr, 0), gone);
  const std::string left = "f.tmp-" + std::to_string(gone), others[] = {"f.tmp-1", "f.tmp-" + std::to_string(gone) + "x", "f.tmp-", "g" + left, "f.tmp--5"};
  Put(left, "half");
  for (const std::string& name : others) Put(name, "kept");
  fs::create_directory(Path("d.tmp-" + std::to_string(gone)));
  Put("d.tmp-" + std::to_string(gone) + "/half", "half");
  FileWriter w(Path("f"));
  w.Commit();
  EXPECT_FALSE(fs::exists(Path(left)));
  EXPECT_EQ(TemporaryName(Path("d")), Path("d.tmp-" + std::to_string(getpid())));
  EXPECT_FALSE(fs::exists(Path("d.tmp-" + std::to_string(gone))));
  for (const std::string& name : others) EXPECT_TRUE(fs::exists(Path(name))) << name;
}

TEST_F(FileTest, WriterNamesWhatCannotBeWritten) {
  EXPECT_THAT(ErrorOf([&] { FileWriter(Path("no/such/place")); }), HasSubstr("place: cannot be created: No such file"));
  EXPECT_THAT(ErrorOf([&] { FileWriter{directory_.path()}; }), HasSubstr("is a directory"));
}

TEST_F(FileTest, AFullDiskIsAnErrorAndTheDeviceStays) {
  if (!fs::is_character_file("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  EXPECT_THAT(ErrorOf([&] {
                FileWriter w("/dev/full");
                w.Write("x");
              }),
              HasSubstr("/dev/full: cannot be written: No space left"));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

// A link to a device, in a directory of ours: the device is written, the link is not replaced.
TEST_F(FileTest, DevicesAreWrittenAsTheyAre) {
  fs::create_symlink("/dev/null", Path("null"));
  FileWriter w(Path("null"));
  w.Write("gone");
  w.Commit();
  EXPECT_TRUE(fs::is_symlink(Path("null")));
  EXPECT_EQ(Files(), 1u);
}

TEST_F(FileTest, LinksAndPermissionsStay) {
  Put("old", "one");
  fs::permissions(Path("old"), fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("old", Path("link"));
  FileWriter w(Path("link"));
  w.Write("two");
  w.Commit();
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_EQ(ReadFile(Path("old")), "two");
  EXPECT_EQ(fs::status(Path("old")).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(FileTest, ExchangesNamesOrLeavesBoth) {
  Put("a", "one"), Put("b", "two");
  if (!ExchangeNames(Path("a"), Path("b"))) GTEST_SKIP() << "this file system can't";
  EXPECT_EQ(ReadFile(Path("a")), "two");
  EXPECT_EQ(ReadFile(Path("b")), "one");
  EXPECT_FALSE(ExchangeNames(Path("a"), Path("c")));
  EXPECT_EQ(ReadFile(Path("a")), "two");
}

}  // namespace
}  // namespace bamba
