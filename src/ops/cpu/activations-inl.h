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
#include "ops/cpu/matmul-inl.h"
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

HWY_INLINE float ExpOf(float x) { return hn::GetLane(Exp(Set(x))); }

HWY_INLINE float MaxOf(const float* x, int64_t n) {
  Vec top = Set(-kInfinity);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { top = hn::Max(top, LoadOr(Set(-kInfinity), lanes, x + i)); });
  return hn::GetLane(hn::MaxOfLanes(F32(), top));
}

// Adds the lanes of each of four vectors.
HWY_INLINE hn::Vec<hn::Full128<float>> SumsOfLanes(Vec a, Vec b, Vec c, Vec d) {
  const Vec sums = SumsOfBlocks(a, b, c, d);
  const hn::Half<F32> half;
  const auto halved = hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums));
#if HWY_TARGET == HWY_AVX2
  return halved;
#else
  const hn::Half<decltype(half)> quarter;
  return hn::Add(hn::LowerHalf(quarter, halved), hn::UpperHalf(quarter, halved));
#endif
}

// So many rows of x go through the same numbers together: their sums stay in registers.
inline constexpr int kTogether = HWY_TARGET == HWY_AVX2 ? 2 : 4;

// out[r][i] = row(i) · x[r] for i < count. Four i at a time; past the last one it comes again, for nothing. An element's arithmetic is the same for any kRows.
template <int kRows, typename Row>
HWY_INLINE void Dots(int64_t count, const Row& row, const float* const (&x)[kRows], int64_t n, float* const (&out)[kRows]) {
  for (int64_t first = 0; first < count; first += 4) {
    const float* p[4];
    for (int64_t i = 0; i < 4; i++) p[i] = row(std::min(first + i, count - 1));
    Vec sums[kRows][4];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sums[r][i] = hn::Zero(F32());
    ForLanes(n, [&](auto lanes, int64_t at) HWY_ATTR {
      Vec v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) v[i] = lanes.Load(p[i] + at);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) {
        const Vec xs = lanes.Load(x[r] + at);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[r][i] = hn::MulAdd(v[i], xs, sums[r][i]);
      }
    });
    const hn::Full128<float> four;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const auto total = SumsOfLanes(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      if (count - first >= 4) {
        hn::StoreU(total, four, out[r] + first);
      } else {
        HWY_ALIGN float part[4];
        hn::Store(total, four, part);
        std::copy_n(part, count - first, out[r] + first);
      }
    }
  }
}

// finish(r, lanes, i, sum) for each vector i of n columns and each r, with sum = start(r, lanes, i) + Σ_j weight(r, j) · row(j) over j < counts[r], in order of
// j. The counts don't fall.
template <int kRows, typename Weight, typename Row, typename Start, typename Finish>
HWY_INLINE void WeightedSums(const int64_t (&counts)[kRows], const Weight& weight, const Row& row, int64_t n, const Start& start, const Finish& finish) {
  const int64_t step = LaneCount();
  const auto columns = [&](auto lanes, int64_t i, auto vecs) HWY_ATTR {
    constexpr int kVecs = decltype(vecs)::value;
    Vec sums[kRows][kVecs];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++) sums[r][v] = start(r, lanes, i + v * step);
    const auto add = [&](int64_t j, auto first_row) HWY_ATTR {
      Vec numbers[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++) numbers[v] = lanes.Load(row(j) + i + v * step);
#pragma GCC unroll 4
      for (int r = first_row(); r < kRows; r++) {
        const Vec factor = hn::Set(F32(), weight(r, j));
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) sums[r][v] = hn::MulAdd(factor, numbers[v], sums[r][v]);
      }
    };
    int64_t j = 0;
    for (; j < counts[0]; j++) add(j, std::integral_constant<int, 0>());
    if constexpr (kRows > 1)
      for (; j < counts[1]; j++) add(j, std::integral_constant<int, 1>());
    if constexpr (kRows > 2)
      for (; j < counts[2]; j++) add(j, std::integral_constant<int, 2>());
    if constexpr (kRows > 3)
      for (; j < counts[3]; j++) add(j, std::integral_constant<int, 3>());
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++) finish(r, lanes, i + v * step, sums[r][v]);
  };
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) columns(AllLanes(), i, std::integral_constant<int, 4>());
  const int64_t done = i;
  ForLanes(n - done, [&](auto lanes, int64_t at) HWY_ATTR { columns(lanes, done + at, std::integral_constant<int, 1>()); });
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
