#pragma once

// Every tolerance of the tests, each with its derivation. None is tuned: a bound that a correct implementation breaks is derived anew, not widened.
namespace bamba {

inline constexpr double kEps32 = 0x1p-24;  // unit roundoff of f32: |round(x) − x| ≤ kEps32 |x|

// fp32 rounding of a K-term dot product summed in any order: each of the K products and K sums errs by at most kEps32 relative to a partial sum, and every
// partial sum is at most ‖x‖‖w‖ (Cauchy-Schwarz).
inline double DotBound(double norm_x, double norm_w, double k) { return 2 * k * kEps32 * norm_x * norm_w; }

}  // namespace bamba
