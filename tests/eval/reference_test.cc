#include "eval/reference.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "eval/hidden_states.h"
#include "io/checkpoint.h"
#include "tests/support/device.h"
#include "tests/support/files.h"

namespace bamba {
namespace {

class ReferenceTest : public testing::TestWithParam<const char*> {
 protected:
  std::string directory() const { return std::string(BAMBA_SOURCE_DIR "/tests/data/") + GetParam(); }
  std::string goldens() const { return directory() + "/goldens.safetensors"; }
};

// The bounds of `bamba verify`: what two correct fp32 implementations of these checkpoints differ by.
TEST_P(ReferenceTest, GoldensAreMet) {
  const Model model = LoadModel(directory());
  Device cpu(cpu::kTable, Dtype::kF32, 2);
  const ReferenceErrors errors = CompareWithReference(cpu.ctx, model, SafetensorsFile(goldens()), std::nullopt);
  EXPECT_LE(errors.logits.value(), 2e-5);
  EXPECT_LE(errors.hidden.value(), 2e-5) << errors.worst_hidden;
  EXPECT_LE(errors.gradient.value(), 1e-4) << errors.worst_gradient;
  EXPECT_GT(errors.gradients, 20);
  EXPECT_TRUE(errors.missing_gradients.empty());
  EXPECT_TRUE(errors.loss.has_value());
}

TEST_P(ReferenceTest, AChangedWeightIsSeen) {
  Model model = LoadModel(directory());
  Buffer copy(model.weights.final_norm.bytes());
  std::memcpy(copy.data(), model.weights.final_norm.data(), copy.size());
  model.weights.final_norm = Tensor(copy.data(), Dtype::kF32, {model.config.dim});
  model.weights.final_norm.as<float>()[3] *= 1.01f;
  Device cpu(cpu::kTable, Dtype::kF32);
  const ReferenceErrors errors = CompareWithReference(cpu.ctx, model, SafetensorsFile(goldens()), std::nullopt);
  EXPECT_GT(errors.logits.value(), 2e-5);
  EXPECT_GT(errors.hidden.value(), 2e-5);
  EXPECT_EQ(errors.worst_hidden, fmt::format("hidden.{}", model.config.layers()));
  EXPECT_GT(errors.gradient.value(), 1e-4);
}

TEST_P(ReferenceTest, ContinuationsStartWithTheirPrompts) {
  const SafetensorsFile file(goldens());
  const auto references = ReadGreedyReferences(file, LoadConfig(directory()).vocab);
  ASSERT_GE(references.size(), 4u);
  EXPECT_EQ(references[0].name, "generate.greedy");
  EXPECT_GE(references[0].prompt.size(), 20u);
  EXPECT_EQ(references[0].prompt.size() + references[0].continuation.size(), 60u);
  // The padded row 0 and the unpadded prompt are one and the same.
  EXPECT_EQ(references[1].continuation.back(), references[2].continuation.back());
}

INSTANTIATE_TEST_SUITE_P(Goldens, ReferenceTest, testing::Values("tiny-a", "tiny-b", "tiny-d"));

TEST(ReferenceErrorsTest, InputIdsAreChecked) {
  const TemporaryDirectory directory;
  const std::string path = directory / "ids.safetensors";
  const auto write = [&](const char* name, Dtype dtype, std::vector<int64_t> shape, std::vector<int64_t> values) {
    SafetensorsWriter writer(path, {{name, dtype, shape}});
    writer.Write(values.data(), writer.entries()[0].bytes());
    writer.Commit();
  };
  write("input_ids", Dtype::kI64, {1, 2}, {3, 512});
  EXPECT_THROW(ReadTokenRows(SafetensorsFile(path), "input_ids", 512), Error);
  EXPECT_EQ(ReadTokenRows(SafetensorsFile(path), "input_ids", 513), (std::vector<std::vector<int32_t>>{{3, 512}}));
  write("input_ids", Dtype::kI64, {1, 2}, {-1, 0});
  EXPECT_THROW(ReadTokenRows(SafetensorsFile(path), "input_ids", 512), Error);
  write("input_ids", Dtype::kF32, {1, 2}, {0});
  EXPECT_THROW(ReadTokenRows(SafetensorsFile(path), "input_ids", 512), Error);
  write("input_ids", Dtype::kI64, {1, 0}, {});
  EXPECT_THROW(ReadTokenRows(SafetensorsFile(path), "input_ids", 512), Error);
  write("ids", Dtype::kI64, {1, 1}, {0});
  EXPECT_THROW(ReadTokenRows(SafetensorsFile(path), "input_ids", 512), Error);
}

}  // namespace
}  // namespace bamba
