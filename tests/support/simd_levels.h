#pragma once

#include <gtest/gtest.h>

#include "ops/cpu/simd.h"
#include "tests/support/tested.h"

namespace bamba {

// Runs `body` once at each SIMD level that this machine has, and goes back to the best one; once where the GPU is tested.
template <typename Body>
void AtEverySimdLevel(const Body& body) {
  if (TestsGpu()) return body();
  const auto levels = cpu::SimdLevels();
  ASSERT_FALSE(levels.empty());
  for (cpu::SimdLevel level : levels) {
    SCOPED_TRACE(cpu::Name(level));
    cpu::SetSimd(level);
    body();
  }
}

}  // namespace bamba
