#include "io/named_config.h"

#include <gtest/gtest.h>

#include "io/checkpoint.h"
#include "model/params.h"

namespace bamba {
namespace {

TEST(NamedConfig, Bamba9bIsTheReleasedShape) {
  const Config c = NamedConfig("bamba-9b").value();
  EXPECT_EQ(ParameterCount(c), 9'780'235'392);
  EXPECT_EQ(c.layers(), 32);
  for (int layer : {9, 18, 27}) EXPECT_EQ(c.blocks[static_cast<size_t>(2 * layer)], BlockKind::kAttention);
  EXPECT_EQ(c.Count(BlockKind::kAttention), 3);
  EXPECT_EQ(c.in_proj_rows(), 16768);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.rope_dims, 64);
}

TEST(NamedConfig, MiniIsTheModelThatComesAlong) {
  Config c = NamedConfig("mini").value(), shipped = LoadConfig(BAMBA_SOURCE_DIR "/models/mini");
  EXPECT_EQ(c.blocks, shipped.blocks);
  Weights a = EmptyWeights(c), b = EmptyWeights(shipped);
  const auto ours = Parameters(c, a), theirs = Parameters(shipped, b);
  ASSERT_EQ(ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); i++) EXPECT_EQ(ours[i].shape, theirs[i].shape) << ours[i].name;
  EXPECT_EQ(c.rope_dims, shipped.rope_dims);
  EXPECT_EQ(c.rope_theta, shipped.rope_theta);
  EXPECT_EQ(c.eps, shipped.eps);
  EXPECT_EQ(c.bos, shipped.bos);
  EXPECT_EQ(c.eos, shipped.eos);
}

TEST(NamedConfig, EveryNameIsKnownAndNoOther) {
  for (const std::string& name : ConfigNames()) EXPECT_TRUE(NamedConfig(name)) << name;
  EXPECT_FALSE(NamedConfig(""));
  EXPECT_FALSE(NamedConfig("Bamba-9B"));
}

}  // namespace
}  // namespace bamba
