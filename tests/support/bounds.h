#pragma once

#include "ops/ops.h"

// Every tolerance of the tests, each with its derivation. None is tuned: a bound that a correct implementation breaks is derived anew, not widened.
namespace bamba {

inline constexpr double kEps32 = 0x1p-24;  // unit roundoff of f32: |round(x) − x| ≤ kEps32 |x|

// fp32 rounding of a K-term dot product summed in any order: each of the K products and K sums errs by at most kEps32 relative to a partial sum, and every
// partial sum is at most ‖x‖‖w‖ (Cauchy-Schwarz).
inline double DotBound(double norm_x, double norm_w, double k) { return 2 * k * kEps32 * norm_x * norm_w; }

// Backward of the scan over `rows` tokens, relative to the sum of the absolute values of an element's terms (ScanRecurrence with magnitudes). A term is a
// product of a few factors and passes at most 2 (head_dim + state + rows + heads) roundings of sums. Its decay exp(−e) errs by e times the error of e, which is
// a sum of at most kSsdChunk products of a rounded dt (6 roundings, and |raw| ≤ 104 of them where dt = exp(raw) is small); beyond e = 104 the decay is 0 in
// f32.
inline double ScanBackwardBound(const SsdShape& shape, int64_t rows) {
  const auto sums = static_cast<double>(shape.head_dim + shape.state + rows + shape.heads), exponent = static_cast<double>(kSsdChunk) + 6;
  return (2 * sums + 104 * exponent + 104) * kEps32;
}
// A factor below the smallest normal float errs by at most that float, whatever its size; the other factors of a term of the scan (steps up to 10⁴, sums of at
// most 10⁶ products of operands up to 2) make at most 10¹⁴ of it.
inline constexpr double kScanUnderflow = 1.2e-38 * 1e14;

}  // namespace bamba
