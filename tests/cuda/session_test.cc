// Sessions whose state is in the GPU's memory, and their snapshots in the host's.
#include "engine/session.h"

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/support/gpu.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

TEST(CudaSessionTest, SnapshotsComeBackWithTheSameTokens) {
  if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  const int64_t tokens = Gpu::Short() ? 6 : 60;  // of a turn
  Engine engine(model, nullptr,
                {.name = "m",
                 .execution = {.precise = true, .accelerator = Gpu::Here()},
                 .context = 900,
                 .sequences = 3,
                 .roll_back = true,
                 .snapshot_bytes = 3 * SnapshotStore::kBlock + (1 << 16)});
  const auto stranger = [&] { engine.Submit({.prompt = {9, 8, 7}, .max_tokens = tokens, .ignore_eos = true}, {}); };
  Session session(engine), other(engine);
  const auto turn = [&](Session& s, int32_t id) {
    return s
        .Generate({.prompt = {id, id}, .max_tokens = tokens, .sampling = {.temperature = 1, .top_p = 0.9, .seed = 1}, .ignore_eos = true}, [](std::string_view) {})
        .tokens;
  };
  turn(session, 1), turn(other, 2);
  const SnapshotId a = session.Snapshot(), b = other.Snapshot();
  stranger();
  const std::vector<int32_t> second = turn(session, 3), of_other = turn(other, 4);
  const SnapshotId c = session.Snapshot();
  const std::vector<int32_t> third = turn(session, 5);
  ASSERT_TRUE(session.Restore(a));
  EXPECT_EQ(turn(session, 3), second);
  stranger();
  ASSERT_TRUE(other.Restore(c));
  EXPECT_EQ(turn(other, 5), third);
  ASSERT_TRUE(session.Restore(b));
  EXPECT_EQ(turn(session, 4), of_other);
  const SnapshotId d = session.Snapshot();  // in the memory of the one used longest ago
  EXPECT_FALSE(session.Restore(a));
  ASSERT_TRUE(session.Restore(c) && other.Restore(d));
  EXPECT_EQ(turn(session, 5), third);
  while (engine.Step()) {
  }
}

}  // namespace
}  // namespace bamba
