#include "cli/default_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace bamba::cli {
namespace {

// The test program lies in the build tree as bamba does: below the directory that holds models/mini.
TEST(DefaultModelTest, IsFoundFromTheBuildTreeInAnyWorkingDirectory) {
  unsetenv("BAMBA_MODEL");
  auto here = std::filesystem::current_path();
  std::filesystem::current_path("/");
  std::string model = DefaultModel();
  std::filesystem::current_path(here);
  EXPECT_TRUE(std::filesystem::equivalent(model, BAMBA_SOURCE_DIR "/models/mini")) << model;
}

TEST(DefaultModelTest, TheEnvironmentComesFirstEvenWhereItIsWrong) {
  setenv("BAMBA_MODEL", "/no/such/model", 1);
  EXPECT_EQ(DefaultModel(), "/no/such/model");
  unsetenv("BAMBA_MODEL");
}

}  // namespace
}  // namespace bamba::cli
