#include "text/vectors.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/support/files.h"

namespace bamba {
namespace {

void ExpectExact(const std::string& tokenizer_path, const std::string& vectors, int64_t cases, int64_t fields) {
  VectorReport report = CheckVectors(Tokenizer::Load(tokenizer_path), vectors);
  EXPECT_EQ(report.cases, cases);
  EXPECT_EQ(report.fields, fields);
  EXPECT_EQ(report.failed, 0);
  for (const std::string& line : report.first_failures) ADD_FAILURE() << line;
}

TEST(VectorsTest, Small8k) {
  const std::string dir = BAMBA_SOURCE_DIR "/tests/data/small-8k";
  ExpectExact(dir, dir + "/vectors.jsonl", 504, 2520);
  ExpectExact(dir, dir + "/decode_vectors.jsonl", 450, 900);
}

// Small tokenizers that use every kind of pre-tokenizer, behaviour, added-token flag and post-processor: see tools/make_tokenizer_vectors.py.
TEST(VectorsTest, EveryPartOfTheFormat) {
  int tokenizers = 0;
  for (const auto& entry : std::filesystem::directory_iterator(BAMBA_SOURCE_DIR "/tests/data/tokenizers")) {
    if (entry.path().extension() != ".json") continue;
    SCOPED_TRACE(entry.path().filename());
    ExpectExact(entry.path(), entry.path().string() + "l", 40, 200);
    ++tokenizers;
  }
  EXPECT_EQ(tokenizers, 15);
}

TEST(VectorsTest, Llama3InBothNotations) {
  const char* shared = std::getenv("BAMBA_SHARED");
  if (shared == nullptr) GTEST_SKIP() << "BAMBA_SHARED is unset: the directory with tokenizer/vectors.jsonl, whose licence keeps it out of this repository";
  const std::string dir = std::string(shared) + "/tokenizer";
  for (const char* file : {"/tokenizer.json", "/legacy/tokenizer.json"}) {
    ExpectExact(dir + file, dir + "/vectors.jsonl", 5020, 25100);
    ExpectExact(dir + file, dir + "/decode_vectors.jsonl", 800, 1600);
  }
}

TEST(VectorsTest, ADifferenceIsReported) {
  const std::string dir = BAMBA_SOURCE_DIR "/tests/data/small-8k";
  const TemporaryDirectory directory;
  const std::string path = directory / "wrong.jsonl";
  WriteFile(path, R"({"text":"a","ids":[0],"decoded":"a"})"
                  "\n");
  VectorReport report = CheckVectors(Tokenizer::Load(dir), path);
  EXPECT_EQ(report.failed, 3);  // ids, decoded, and decoded again without special tokens
  EXPECT_EQ(report.first_failures.size(), 3u);
}

}  // namespace
}  // namespace bamba
