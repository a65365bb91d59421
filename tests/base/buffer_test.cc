#include "base/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "base/error.h"

namespace bamba {
namespace {

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % Workspace::kAlign == 0; }

TEST(BufferTest, IsZeroedAndMoves) {
  Buffer a(10000);
  EXPECT_TRUE(std::all_of(a.data(), a.data() + a.size(), [](char c) { return c == 0; }));
  a.data()[9999] = 7;
  Buffer b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(a.size(), 0u);
  EXPECT_EQ(b.data()[9999], 7);
  a = std::move(b);
  EXPECT_EQ(a.data()[9999], 7);
}

TEST(BufferTest, NothingNeedsNoMemory) { EXPECT_EQ(Buffer(0).data(), nullptr); }

TEST(BufferTest, ImpossibleSizesAreAnErrorThatNamesThem) {
  try {
    Buffer impossible(size_t{1} << 62);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("4.61 EB"), std::string::npos) << e.what();
  }
}

TEST(WorkspaceTest, TensorsAreAlignedAndDoNotOverlap) {
  Workspace w(4096);
  Tensor a = w.Take(Dtype::kF32, {3, 5}), b = w.Take(Dtype::kBf16, {7}), empty = w.Take(Dtype::kF64, {0, 9}), c = w.Take(Dtype::kI64, {1});
  for (const Tensor& t : {a, b, empty, c}) EXPECT_TRUE(t && Aligned(t.data()));
  EXPECT_GE(static_cast<char*>(b.data()) - static_cast<char*>(a.data()), 60);
  EXPECT_GE(static_cast<char*>(empty.data()) - static_cast<char*>(b.data()), 14);
  EXPECT_NE(empty.data(), c.data());
}

TEST(WorkspaceTest, AFrameReleasesAllItTook) {
  Workspace w(4096);
  w.Allocate(100);
  size_t mark = w.used();
  void* first = w.Allocate(1000);
  w.Allocate(1);
  size_t high = w.used();
  w.ReleaseTo(mark);
  EXPECT_EQ(w.used(), mark);
  EXPECT_EQ(w.Allocate(10), first);
  EXPECT_EQ(w.high_water(), high);
}

// The plan of a run is the run itself with a measuring workspace: the size it finds suffices, and one step less does not.
TEST(WorkspaceTest, MeasuringFindsTheSizeThatIsNeeded) {
  auto run = [](Workspace& w) {
    Tensor kept = w.Take(Dtype::kF32, {17, 3});
    for (int64_t n : {100, 3000, 20}) {
      size_t mark = w.used();
      Tensor t = w.Take(Dtype::kF32, {n});
      EXPECT_TRUE(t && kept);
      w.ReleaseTo(mark);
    }
  };
  Workspace plan = Workspace::Measuring();
  run(plan);
  Workspace exact(plan.high_water());
  run(exact);
  EXPECT_EQ(exact.high_water(), plan.high_water());
  EXPECT_DEATH(
      {
        Workspace small(plan.high_water() - Workspace::kAlign);
        run(small);
      },
      "workspace of [0-9]+ bytes asked for");
}

TEST(WorkspaceTest, MeasuringCountsWhatNoMachineHas) {
  Workspace w = Workspace::Measuring();
  w.Take(Dtype::kF64, {int64_t{1} << 30, int64_t{1} << 20});
  EXPECT_EQ(w.high_water(), size_t{1} << 53);
  EXPECT_DEATH(w.Take(Dtype::kF64, {int64_t{1} << 31, int64_t{1} << 31}), "too large");
  EXPECT_DEATH(w.Take(Dtype::kF64, {-1}), "negative");
}

}  // namespace
}  // namespace bamba
