#include "base/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <set>
#include <string>

#include "base/check.h"

namespace bamba {
namespace {

// A thread spins for about as long as waking it up would take, which at worst doubles the wait; past that it sleeps, so that an idle program costs nothing and
// a busy neighbour gets its core.
constexpr auto kSpin = std::chrono::microseconds(50);

// Parts of ThreadPool::state_.
constexpr uint64_t kInside = (uint64_t{1} << 31) - 1, kOpen = uint64_t{1} << 31, kLoop = uint64_t{1} << 32;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <typename Done>
bool SpinUntil(const Done& done) {
  auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; i++) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

double CgroupQuota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::strtod(quota.c_str(), nullptr) / period;
  std::ifstream v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double q = 0;
  if (v1 >> q && q > 0 && v1_period >> period && period > 0) return q / period;
  return 1e9;
}

}  // namespace

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &set)) continue;
    std::ifstream f("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    cores.insert(f >> siblings ? siblings : std::to_string(cpu));
  }
  int n = static_cast<int>(cores.size());
  return std::max(1, std::min(n, static_cast<int>(std::ceil(CgroupQuota()))));
}

ThreadPool::ThreadPool(int threads) {
  CHECK_MSG(threads >= 1, "{} threads", threads);
  for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::Drain(int thread) {
  for (int64_t begin; (begin = next_.fetch_add(grain_, std::memory_order_relaxed)) < n_;) call_(context_, begin, std::min(begin + grain_, n_), thread);
}

void ThreadPool::Work(int thread) {
  uint64_t loop = 0;  // the last one taken part in
  while (true) {
    uint64_t state = 0;
    auto ready = [&] {
      state = state_.load();
      return stop_.load() || ((state & kOpen) && state / kLoop != loop);
    };
    if (!SpinUntil(ready)) {
      std::unique_lock lock(mutex_);
      sleepers_++;
      wake_.wait(lock, ready);
      sleepers_--;
    }
    if (stop_.load()) return;
    if (!state_.compare_exchange_strong(state, state + 1)) continue;
    loop = state / kLoop;
    Drain(thread);
    if ((state_.fetch_sub(1) & (kOpen | kInside)) == 1) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

void ThreadPool::Run(int64_t n, int64_t grain, Call call, const void* context) {
  const uint64_t before = state_.load();
  CHECK_MSG((before & (kOpen | kInside)) == 0, "a parallel loop inside another");
  n_ = n, grain_ = grain, call_ = call, context_ = context;
  next_.store(0, std::memory_order_relaxed);
  state_.store(before + kLoop + kOpen);
  if (sleepers_.load() > 0) {  // a worker counts itself before its last look at state_, so one of the two sees the other
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  Drain(0);
  state_.fetch_and(~kOpen);
  auto left = [&] { return (state_.load() & kInside) == 0; };
  if (!SpinUntil(left)) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, left);
  }
}

}  // namespace bamba
