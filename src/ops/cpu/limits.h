#pragma once

#include "base/thread_pool.h"

namespace bamba::cpu {

// What the memory and the arithmetic of this machine allow the pool's threads, at the current SIMD level: the yardstick beside which speeds are reported. Each
// takes about `seconds` and gives the best of its repeats, so that a moment when another process had the cores does not count.
double ReadBandwidth(ThreadPool& threads, double seconds = 0.5);  // bytes per second, of summing up random floats in 1 GiB
double FmaRate(ThreadPool& threads, double seconds = 0.2);        // floating-point operations per second, two for each lane of a fused multiply-add, in f32

}  // namespace bamba::cpu
