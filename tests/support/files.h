#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/mapped_file.h"

namespace bamba {

// A directory of its own for a test, removed with everything in it. Tests run beside each other: no path is shared.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "bamba-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) ADD_FAILURE() << pattern << ": no such directory can be made";
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

inline void WriteFile(const std::string& path, std::string_view text) {
  FileWriter file(path);
  file.Write(text);
  file.Commit();
}

// The message of the Error that `work` throws; a failure of the test where it throws none or more than one line.
template <typename Work>
std::string ErrorOf(Work work) {
  try {
    work();
  } catch (const Error& e) {
    EXPECT_THAT(std::string(e.what()), testing::Not(testing::HasSubstr("\n")));
    return e.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

inline std::string DataDirectory(const std::string& name) { return std::string(BAMBA_SOURCE_DIR) + "/tests/data/" + name; }

}  // namespace bamba
