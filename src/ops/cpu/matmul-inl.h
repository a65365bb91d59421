// What the matrix products share, for each SIMD level; see weights-inl.h on the guard.
#if defined(BAMBA_OPS_CPU_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef BAMBA_OPS_CPU_MATMUL_INL_H
#undef BAMBA_OPS_CPU_MATMUL_INL_H
#else
#define BAMBA_OPS_CPU_MATMUL_INL_H
#endif

#include <algorithm>
#include <type_traits>

#include "ops/cpu/rows.h"
#include "ops/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// Calls function(integral_constant<rows>): a kernel holds its sums in registers only if their number is known to the compiler.  1 ≤ rows ≤ kMost
template <int kMost, int kRows = 1, typename Function>
HWY_INLINE void WithRows(int64_t rows, const Function& function) {
  if constexpr (kRows < kMost) {
    if (rows > kRows) return WithRows<kMost, kRows + 1>(rows, function);
  }
  function(std::integral_constant<int, kRows>());
}

// In each block of 128 bits the sums of that block of a, b, c and d: lane l with lane l + 2, then those two. A sum depends on its own vector alone.
HWY_INLINE Vec SumsOfBlocks(Vec a, Vec b, Vec c, Vec d) {
  const Floats f;
  const hn::Repartition<double, Floats> pairs;
  const Vec ab = hn::Add(hn::InterleaveLower(f, a, b), hn::InterleaveUpper(f, a, b));
  const Vec cd = hn::Add(hn::InterleaveLower(f, c, d), hn::InterleaveUpper(f, c, d));
  const auto ab2 = hn::BitCast(pairs, ab), cd2 = hn::BitCast(pairs, cd);
  return hn::Add(hn::BitCast(f, hn::InterleaveLower(pairs, ab2, cd2)), hn::BitCast(f, hn::InterleaveUpper(pairs, ab2, cd2)));
}

// The size of the pieces, at most `most`, that share `rows` evenly among as few of them as possible.
HWY_INLINE int64_t EvenPiece(int64_t rows, int64_t most) { return CeilDiv(rows, std::max<int64_t>(1, CeilDiv(rows, most))); }

// Calls function(constant with weight's element type): float, Bf16 or F16.
template <typename Function>
HWY_INLINE void WithWeightType(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kF32: return function(float());
    case Dtype::kBf16: return function(Bf16());
    case Dtype::kF16: return function(F16());
    default: CHECK_MSG(false, "a weight of {}", Name(dtype));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
