// What a parallel loop costs beside its work: a decoding step of a small model is some 150 loops of a few microseconds.
#include <benchmark/benchmark.h>

#include <chrono>

#include "base/thread_pool.h"

namespace bamba {
namespace {

void Work(std::chrono::nanoseconds duration) {
  const auto end = std::chrono::steady_clock::now() + duration;
  while (std::chrono::steady_clock::now() < end) {
  }
}

// Loops of two pieces of range(0) ns each, range(1) ns of the caller's own work between them: at best a loop takes range(0) ns. Prints the rest.
void BM_Loop(benchmark::State& state) {
  ThreadPool pool(2);
  const std::chrono::nanoseconds piece(state.range(0)), between(state.range(1));
  double seconds = 0;
  for (auto _ : state) {
    Work(between);
    const auto start = std::chrono::steady_clock::now();
    pool.For(2, 1, [&](int64_t, int64_t, int) { Work(piece); });
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  state.counters["overhead_ns"] = seconds * 1e9 / static_cast<double>(state.iterations()) - static_cast<double>(state.range(0));
}
BENCHMARK(BM_Loop)->ArgsProduct({{500, 2'000, 10'000}, {0, 2'000, 30'000, 1'000'000}})->UseRealTime();

}  // namespace
}  // namespace bamba
