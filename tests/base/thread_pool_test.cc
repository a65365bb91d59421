#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <random>
#include <vector>

namespace bamba {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

TEST_P(ThreadPoolTest, CoversEveryIndexOnceInPiecesOfTheGrain) {
  for (int64_t n : {0, 1, 2, 3, 7, 64, 1000, 1001})
    for (int64_t grain : {1, 2, 3, 16, 1000, 5000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      std::atomic<int> oversized{0}, strangers{0};
      pool_.For(n, grain, [&](int64_t begin, int64_t end, int thread) {
        if (end <= begin || end - begin > grain) oversized++;
        if (thread < 0 || thread >= pool_.threads()) strangers++;
        for (int64_t i = begin; i < end; i++) seen[static_cast<size_t>(i)]++;
      });
      for (auto& count : seen) ASSERT_EQ(count, 1) << n << " in pieces of " << grain;
      ASSERT_EQ(oversized, 0);
      ASSERT_EQ(strangers, 0);
    }
}

// Scratch memory is indexed by the thread number: no lock, so tsan sees two calls that share one.
TEST_P(ThreadPoolTest, NoTwoCallsShareAThreadNumber) {
  std::vector<int64_t> sums(static_cast<size_t>(pool_.threads()) * 16);
  for (int round = 0; round < 200; round++)
    pool_.For(257, 3, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; i++) sums[static_cast<size_t>(thread) * 16] += i;
    });
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), 200 * 257 * 128);
}

// What one loop wrote, the next one reads, on whichever thread: thousands of short loops, as a decoding step has them.
TEST_P(ThreadPoolTest, ShortLoopsFollowEachOther) {
  std::vector<int64_t> a(64), b(64);
  std::iota(a.begin(), a.end(), 0);
  for (int round = 0; round < 5000; round++) {
    pool_.For(64, 5, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) b[static_cast<size_t>(i)] = a[static_cast<size_t>(63 - i)] + 1;
    });
    std::swap(a, b);
  }
  for (int64_t i = 0; i < 64; i++) ASSERT_EQ(a[static_cast<size_t>(i)], i + 5000);
}

// Pauses longer than the spin put the workers to sleep; they have to wake up, and a pool has to end while they do.
TEST_P(ThreadPoolTest, WakesFromSleep) {
  std::mt19937 random(1);
  for (int round = 0; round < 100; round++) {
    ThreadPool fresh(GetParam());
    std::atomic<int64_t> sum{0};
    for (int loop = 0; loop < 3; loop++) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 100));
      fresh.For(100, 7, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    }
    ASSERT_EQ(sum, 300);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolDeathTest, RefusesALoopInsideAnother) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        pool.For(2, 1, [&](int64_t, int64_t, int) { pool.For(2, 1, [](int64_t, int64_t, int) {}); });
      },
      "a parallel loop inside another");
}

TEST(AvailableCoresTest, IsAtLeastOneAndAtMostWhatTheMachineShows) {
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_LE(AvailableCores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace bamba
