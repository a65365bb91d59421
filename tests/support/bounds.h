#pragma once

#include <cmath>

#include "ops/ops.h"

// Every tolerance of the tests, each with its derivation. None is tuned: a bound that a correct implementation breaks is derived anew, not widened.
namespace bamba {

inline constexpr double kEps32 = 0x1p-24;  // unit roundoff of f32: |round(x) − x| ≤ kEps32 |x|
inline constexpr double kEpsBf16 = 0x1p-8;  // of a rounding to bf16, 2⁻⁹, relative, with what f32 arithmetic adds to it

// Two evaluations of one function in double, of at most some 10⁵ operations a number: a backward pass and the complex step, of which neither subtracts nearby
// numbers, relative to the largest gradient element of the tensor; logits of about 5 by two implementations, absolute. Rounding alone, 2⁻⁵³ · √10⁵ of it, stays
// four orders below.
inline constexpr double kGradientBound = 1e-10, kDoubleBound = 1e-10;

// fp32 rounding of a K-term dot product summed in any order: each of the K products and K sums errs by at most kEps32 relative to a partial sum, and every
// partial sum is at most ‖x‖‖w‖ (Cauchy-Schwarz).
inline double DotBound(double norm_x, double norm_w, double k) { return 2 * k * kEps32 * norm_x * norm_w; }

// Below, errors are to first order in kEps32; an exp errs by at most 1 ulp = 2 kEps32 and a log1p by 2 ulp (Highway's own statements), and what underflows is
// lost to within kTiny32 times its factor.
inline constexpr double kTiny32 = 0x1p-126;

// silu(x) = x / (1 + e^−x), relative: e = e^−|x| errs by 2; 1 + e by e/(1+e) · 2 + 1 ≤ 2; the quotient by 3; times e (where x < 0) by 6; times x by 7.
inline constexpr double kSiluError = 7 * kEps32;

// RMS norm of n numbers, relative: the sum of n squares (all positive) errs by n; dividing, eps and its rounding add 3; the root halves this; the root itself,
// the reciprocal and two products add 4. `input`: relative error of the numbers themselves, once in the number and once in the mean.
inline double NormError(double n, double input = 0) { return ((n + 3) / 2 + 4) * kEps32 + 2 * input; }

// log Σ exp(x_j − top): the difference errs by kEps32 |x_j − top|, its exp by 2 more; a piece of 1024 terms goes through at most 1024 / 8 lanes + 3 additions;
// absolute after the log. Rounding the result to f32 comes on top, relative.
inline double LogSumExpError(double range) { return (range + 2 + 1024.0 / 8 + 3) * kEps32; }

// One pair turned by an angle: cosine and sine, the product and the sum err by 1 each.
inline double RotationBound(double u, double v) { return 3 * kEps32 * (u + v); }

// SiLU (slope ≤ 1.1) of a bias and d_conv fused multiply-adds; `magnitude` = |bias| + Σ |w x|.
inline double ConvBound(double d_conv, double magnitude, double silu) { return 1.1 * (d_conv + 1) * kEps32 * magnitude + kSiluError * silu; }

// Attention over keys with |score| ≤ `score`, |q||k| summed `dot` at most (after scaling), |v| ≤ `value`. A score errs by (head_dim + 2) · dot, the shift by
// the maximum by 2 · score; exps and their products with the factors between blocks by 6 per block; sums within a block by 64, over blocks by 2 per block. Each
// weight p/Σp then errs by twice that, relative, and the weighted mean of v by as much of the largest |v|; the division adds 1.
inline double AttentionBound(double head_dim, double dot, double score, double blocks, double value) {
  return (2 * ((head_dim + 2) * dot + 2 * score + 8 * blocks + 64) + 1) * kEps32 * value;
}

// The scan. `magnitude` is the same scan of absolute values (all terms positive): the sum of |term| that makes up an output. Relative error of a term:
//  - dt = softplus(raw): raw is rounded once (error |raw|, of which softplus passes on at most as much relatively), exp and log1p add 6: raw + 6;
//  - exponents: each is a sum, in order, of at most 32 products dt · A (dt's error, A's 2, the product 1), so it errs by raw + 6 + 3 + 32 relatively; together
//    they are at most 104 where the term is not 0 in f32; then 2 for each chunk's exp and 1 for its product;
//  - sums: C·S and C·B over `state` terms, 32 tokens and the carried state in each of `chunks`, and 4 more products.
// `undecayed`, the same scan without decay, is what an exp below f32's range is a factor of.
inline double ScanBound(double raw, double chunks, double state, double magnitude, double undecayed) {
  return (raw + 6 + 104 * (raw + 41) + chunks * (3 + 33) + 2 * state + 33 + 4) * kEps32 * magnitude + kTiny32 * undecayed;
}

// A sum of terms whose absolute values add up to `size`, where a term meets at most n roundings of sums and 4 of its own.
inline double SumBound(double n, double size) { return (n + 4) * kEps32 * size; }

// Roundings in σ(x) or silu'(x): those of exp (2), 1 + e, two quotients or products, and the sum 1 + x (1 − σ(x)), whose terms may cancel: relative to max(1,
// |x|).
inline constexpr double kActivationRoundings = 16;

// Backward of a norm over n elements: dx = r (g − x r² Σ g x / n) with |g_i| ≤ g and r ≤ the given. ‖x‖ r ≤ √n, so both terms are at most √n r g; the sums in r
// and Σ g x err by n roundings each, r³ triples its own half, and some 8 products follow.
inline double NormBackwardBound(double n, double r, double g) { return (2.5 * n + 12) * kEps32 * 2 * std::sqrt(n) * r * g; }

// Backward of attention over at most `rows` keys of one query and queries of one key, for each of heads / kv_heads heads; q, k, v, dy: the largest elements.
// That of dq is absolute, as the probabilities of a query sum to 1; those of dk and dv are relative to Σ_t P_ts |q_t| and Σ_t P_ts |dy_t|.
struct AttentionBackwardBounds {
  double dq, dk, dv;
  AttentionBackwardBounds(const AttentionShape& shape, int64_t rows, double q, double k, double v, double dy) {
    const auto dim = static_cast<double>(shape.head_dim), n = static_cast<double>(rows), queries = n * static_cast<double>(shape.heads / shape.kv_heads);
    const double score = shape.scale * dim * q * k, score_error = DotBound(q * std::sqrt(dim), k * std::sqrt(dim), dim) * shape.scale + 2 * kEps32 * score;
    // A probability is exp of a difference of two scores, of which one is a log of a sum of n; rescaling it from tile to tile rounds once each.
    const double p_error = 2 * score_error + (2 * score + 2 * n + 16) * kEps32;
    // dy·v − delta: two dot products of dim terms, delta with a y rounded to f32 that is itself at most v.
    const double ds = 2 * dim * dy * v, ds_error = 2 * DotBound(dy * std::sqrt(dim), v * std::sqrt(dim), dim + 1);
    dq = shape.scale * k * (ds_error + ds * (p_error + (n + 4) * kEps32));
    dk = shape.scale * (ds_error + ds * (p_error + (queries + 4) * kEps32));
    dv = p_error + (queries + 4) * kEps32;
  }
};

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
inline constexpr double kScanBackwardUnderflow = kTiny32 * 1e14;

// Against the goldens, which another implementation computed in fp32 too: logits and hidden states, absolute (both sides are within 1.5e-6 of float64 where the
// goldens were made; a tenth of this would meet their own rounding); the loss; and each gradient, relative to its tensor's norm.
inline constexpr double kGoldenActivations = 2e-5, kGoldenLoss = 1e-5, kGoldenGradients = 1e-4;

}  // namespace bamba
