#pragma once

#include <cstddef>

#include "base/buffer.h"
#include "base/dtype.h"
#include "base/thread_pool.h"

namespace bamba::cpu {

// What the memory and the arithmetic of this machine allow the pool's threads: the yardstick beside which speeds are reported. Each takes about `seconds` and
// gives the best of its repeats, so that a moment when another process had the cores does not count.

// Bytes per second, of summing up `bytes` of random floats. A buffer that fits the caches tells what they can do. One that is kept can be asked again and
// again: the memory of a shared machine is faster at one moment than at the next.
inline constexpr size_t kLimitBytes = size_t{1} << 30;
class ReadProbe {
 public:
  explicit ReadProbe(ThreadPool& threads, size_t bytes = kLimitBytes);
  double Bandwidth(double seconds);

 private:
  ThreadPool& threads_;
  Buffer buffer_;
  int64_t count_, piece_;
};
inline double ReadBandwidth(ThreadPool& threads, double seconds = 0.5) { return ReadProbe(threads).Bandwidth(seconds); }

// Floating-point operations per second in f32, at the current SIMD level: two for each lane of a fused multiply-add.
double FmaRate(ThreadPool& threads, double seconds = 0.2);

// Operations per second of instructions for narrow numbers, two for each product that is added; 0 where the processor or the system lacks them.
double Bf16DotRate(ThreadPool& threads, double seconds = 0.2);   // AVX512-BF16
double Int8DotRate(ThreadPool& threads, double seconds = 0.2);   // AVX512-VNNI
double Bf16TileRate(ThreadPool& threads, double seconds = 0.2);  // AMX
double Int8TileRate(ThreadPool& threads, double seconds = 0.2);  // AMX

// The one of these that the products with weights of this dtype have, at the current SIMD level; `precise` as the Context's.
using ArithmeticRate = double (*)(ThreadPool& threads, double seconds);
ArithmeticRate LinearRate(Dtype weights, bool precise);

}  // namespace bamba::cpu
