#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bamba {

// Cores this process may use: affinity mask and cgroup quota, hyper-threads counted once.
int AvailableCores();

// A fixed set of threads that share loops. The caller's thread is one of them. Which thread takes which part is not fixed: work must not depend on it.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) until [0, n) is covered once, in pieces of at most `grain`; thread is in [0, threads()) and no two calls that run at
  // the same time share it. Returns when all are done. Not to be nested; the body must not throw.
  template <typename Body>
  void For(int64_t n, int64_t grain, const Body& body) {
    if (n <= 0) return;
    if (workers_.empty() || n <= grain) {
      for (int64_t i = 0; i < n; i += grain) body(i, i + grain < n ? i + grain : n, 0);
      return;
    }
    Run(
        n, grain, [](const void* context, int64_t begin, int64_t end, int thread) { (*static_cast<const Body*>(context))(begin, end, thread); }, &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t begin, int64_t end, int thread);
  void Run(int64_t n, int64_t grain, Call call, const void* context);
  void Work(int thread);
  void Drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  // The number of the loop, whether workers may still enter it, and how many are inside. The caller closes a loop when no piece is left and waits for those
  // inside alone: a worker that another process keeps from its core holds nobody up unless it has a piece in hand.
  std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> next_{0};  // the first index that no thread has taken
  int64_t n_ = 0, grain_ = 1;
  Call call_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace bamba
