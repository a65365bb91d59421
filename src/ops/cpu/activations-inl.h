// What the forward ops do with a row of floats, for the level that is being compiled: weights of any dtype, exp, SiLU, and sums over several rows.
#if defined(BAMBA_OPS_CPU_ACTIVATIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BAMBA_OPS_CPU_ACTIVATIONS_INL_H_
#undef BAMBA_OPS_CPU_ACTIVATIONS_INL_H_
#else
#define BAMBA_OPS_CPU_ACTIVATIONS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/tensor.h"
#include "ops/cpu/lanes-inl.h"
#include "ops/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls body(pointer to the first weight) with the weights' own type.
template <typename Body>
HWY_INLINE void WithWeights(const Tensor& w, const Body& body) {
  switch (w.dtype()) {
    case Dtype::kBf16: return body(w.as<Bf16>());
    case Dtype::kF16: return body(w.as<F16>());
    default: return body(w.as<float>());
  }
}

// The f32 values of a vector of weights.
template <typename W>
HWY_INLINE Vec Weights(AllLanes, const W* p) {
  return LoadWeights(p);
}
template <typename W>
HWY_INLINE Vec Weights(FirstLanes lanes, const W* p) {
  return LoadWeightsPartly(p, static_cast<int64_t>(hn::CountTrue(F32(), lanes.mask)));
}

// A vector whose lanes beyond the row's end hold `fallback`.
HWY_INLINE Vec LoadOr(Vec, AllLanes lanes, const float* p) { return lanes.Load(p); }
HWY_INLINE Vec LoadOr(Vec fallback, FirstLanes lanes, const float* p) { return hn::IfThenElse(lanes.mask, lanes.Load(p), fallback); }

// e^x for x ≤ 88, also −∞; NaN stays NaN, so that a broken weight shows in the logits.
HWY_INLINE Vec Exp(Vec x) { return hn::IfThenElse(hn::Eq(x, x), hn::Exp(F32(), x), x); }
HWY_INLINE float ExpOf(float x) { return hn::GetLane(Exp(Set(x))); }

HWY_INLINE Vec Silu(Vec x) { return hn::Mul(x, Logistic(x).at); }

HWY_INLINE float MaxOf(const float* x, int64_t n) {
  Vec top = Set(-kInfinity);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { top = hn::Max(top, LoadOr(Set(-kInfinity), lanes, x + i)); });
  return hn::GetLane(hn::MaxOfLanes(F32(), top));
}

// Adds the lanes of each of four vectors: lane l of a block of 128 bits with lane l + 2, those two, then the blocks likewise. A sum depends on its own vector
// alone.
HWY_INLINE hn::Vec<hn::Full128<float>> SumsOfLanes(Vec a, Vec b, Vec c, Vec d) {
  const F32 f;
  const hn::Repartition<double, F32> pairs;
  const Vec ab = hn::Add(hn::InterleaveLower(f, a, b), hn::InterleaveUpper(f, a, b));
  const Vec cd = hn::Add(hn::InterleaveLower(f, c, d), hn::InterleaveUpper(f, c, d));
  const auto ab2 = hn::BitCast(pairs, ab), cd2 = hn::BitCast(pairs, cd);
  const Vec sums = hn::Add(hn::BitCast(f, hn::InterleaveLower(pairs, ab2, cd2)), hn::BitCast(f, hn::InterleaveUpper(pairs, ab2, cd2)));
  const hn::Half<F32> half;
  const auto halved = hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums));
#if HWY_TARGET == HWY_AVX2
  return halved;
#else
  const hn::Half<decltype(half)> quarter;
  return hn::Add(hn::LowerHalf(quarter, halved), hn::UpperHalf(quarter, halved));
#endif
}

// out[r] = row(r) · x for r < rows, four at a time; past the last row it comes again, for nothing.
template <typename Row>
HWY_INLINE void Dots(int64_t rows, const Row& row, const float* x, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; r += 4) {
    const auto at = [&](int64_t i) HWY_ATTR { return row(std::min(r + i, rows - 1)); };
    const float *p0 = at(0), *p1 = at(1), *p2 = at(2), *p3 = at(3);
    Vec s0 = hn::Zero(F32()), s1 = s0, s2 = s0, s3 = s0;
    ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
      const Vec v = lanes.Load(x + i);
      s0 = hn::MulAdd(lanes.Load(p0 + i), v, s0), s1 = hn::MulAdd(lanes.Load(p1 + i), v, s1);
      s2 = hn::MulAdd(lanes.Load(p2 + i), v, s2), s3 = hn::MulAdd(lanes.Load(p3 + i), v, s3);
    });
    const hn::Full128<float> four;
    const auto sums = SumsOfLanes(s0, s1, s2, s3);
    if (rows - r >= 4) {
      hn::StoreU(sums, four, out + r);
    } else {
      HWY_ALIGN float part[4];
      hn::Store(sums, four, part);
      for (int64_t i = 0; i < rows - r; i++) out[r + i] = part[i];
    }
  }
}

// finish(lanes, i, sum) for each vector i of n columns, with sum = start(lanes, i) + Σ_r w[r] · row(r), summed in order of r.
template <typename Row, typename Start, typename Finish>
HWY_INLINE void WeightedSum(int64_t rows, const float* w, const Row& row, int64_t n, const Start& start, const Finish& finish) {
  const int64_t step = LaneCount();
  int64_t i = 0;
  for (const AllLanes all; i + 4 * step <= n; i += 4 * step) {
    Vec s0 = start(all, i), s1 = start(all, i + step), s2 = start(all, i + 2 * step), s3 = start(all, i + 3 * step);
    for (int64_t r = 0; r < rows; r++) {
      const Vec weight = hn::Set(F32(), w[r]);
      const float* p = row(r) + i;
      s0 = hn::MulAdd(weight, all.Load(p), s0), s1 = hn::MulAdd(weight, all.Load(p + step), s1);
      s2 = hn::MulAdd(weight, all.Load(p + 2 * step), s2), s3 = hn::MulAdd(weight, all.Load(p + 3 * step), s3);
    }
    finish(all, i, s0), finish(all, i + step, s1), finish(all, i + 2 * step, s2), finish(all, i + 3 * step, s3);
  }
  const int64_t done = i;
  ForLanes(n - done, [&](auto lanes, int64_t j) HWY_ATTR {
    Vec sum = start(lanes, done + j);
    for (int64_t r = 0; r < rows; r++) sum = hn::MulAdd(hn::Set(F32(), w[r]), lanes.Load(row(r) + done + j), sum);
    finish(lanes, done + j, sum);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
