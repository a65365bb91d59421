// Loops over contiguous floats for the level that is being compiled (Highway's foreach_target). The last, partial vector runs through the same arithmetic as
// the full ones, so an element's bits do not depend on its place.
#if defined(BAMBA_OPS_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BAMBA_OPS_CPU_LANES_INL_H_
#undef BAMBA_OPS_CPU_LANES_INL_H_
#else
#define BAMBA_OPS_CPU_LANES_INL_H_
#endif

#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;

HWY_INLINE int64_t LaneCount() { return static_cast<int64_t>(hn::Lanes(F32())); }

struct AllLanes {
  HWY_INLINE Vec Load(const float* p) const { return hn::LoadU(F32(), p); }
  HWY_INLINE void Store(Vec v, float* p) const { hn::StoreU(v, F32(), p); }
  HWY_INLINE Vec Keep(Vec v) const { return v; }
};

// The first n lanes; the others load as 0 and are not stored.
struct FirstLanes {
  hn::Mask<F32> mask;
  HWY_INLINE explicit FirstLanes(int64_t n) : mask(hn::FirstN(F32(), static_cast<size_t>(n))) {}
  HWY_INLINE Vec Load(const float* p) const { return hn::MaskedLoad(mask, F32(), p); }
  HWY_INLINE void Store(Vec v, float* p) const { hn::BlendedStore(v, mask, F32(), p); }
  HWY_INLINE Vec Keep(Vec v) const { return hn::IfThenElseZero(mask, v); }  // for sums over lanes
};

// Calls body(lanes, i) for the vectors that start at element i of n.
template <typename Body>
HWY_INLINE void ForLanes(int64_t n, const Body& body) {
  const int64_t step = LaneCount();
  int64_t i = 0;
  for (; i + step <= n; i += step) body(AllLanes(), i);
  if (i < n) body(FirstLanes(n - i), i);
}

HWY_INLINE Vec Set(double x) { return hn::Set(F32(), static_cast<float>(x)); }
HWY_INLINE float SumOfLanes(Vec v) { return hn::GetLane(hn::SumOfLanes(F32(), v)); }

HWY_INLINE float Dot(const float* a, const float* b, int64_t n) {
  Vec sum = hn::Zero(F32());
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { sum = hn::MulAdd(lanes.Load(a + i), lanes.Load(b + i), sum); });
  return SumOfLanes(sum);
}

// y = scale · x; may be in place.
HWY_INLINE void ScaleRow(float scale, const float* x, float* y, int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(Set(scale), lanes.Load(x + i)), y + i); });
}

// y += scale · x
HWY_INLINE void AddScaledRow(float scale, const float* x, float* y, int64_t n) {
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::MulAdd(Set(scale), lanes.Load(x + i), lanes.Load(y + i)), y + i); });
}

// e^x for x ≤ 88.72 to f32's last digit: 2^n times a polynomial of what is left, a minimax one of relative error 3e-9. What is below f32's normal numbers is 0,
// also of −∞. NaN stays NaN, so that a broken weight shows in the logits.
HWY_INLINE Vec Exp(Vec x) {
  const hn::RebindToSigned<F32> bits;
  const Vec whole = Set(0x1.8p23);  // what is added to it loses its fraction and lies in its last bits
  const Vec shifted = hn::MulAdd(x, Set(1.4426950408889634), whole), n = hn::Sub(shifted, whole);
  const Vec r = hn::NegMulAdd(n, Set(-1.904654299958e-9), hn::NegMulAdd(n, Set(0.693147182464599609375), x));  // x − n ln 2
  Vec q = hn::MulAdd(Set(0.0013814538), r, Set(0.008368745));
  q = hn::MulAdd(q, r, Set(0.04166839)), q = hn::MulAdd(q, r, Set(0.16666521)), q = hn::MulAdd(q, r, Set(0.49999994));
  const Vec power = hn::Add(hn::MulAdd(q, hn::Mul(r, r), r), Set(1));
  const Vec y = hn::BitCast(F32(), hn::Add(hn::BitCast(bits, power), hn::ShiftLeft<23>(hn::BitCast(bits, shifted))));
  return hn::IfThenElse(hn::Ge(x, Set(-87.3365)), y, hn::Max(hn::Zero(F32()), x));  // in this order NaN stays NaN
}

// x / (1 + e^−x). Below x = −88.72, where that is −3e−37 and less, some number of this size.
HWY_INLINE Vec Silu(Vec x) { return hn::Div(x, hn::Add(Set(1), Exp(hn::Min(Set(88.72), hn::Neg(x))))); }

// σ(x) and σ(−x) = 1 − σ(x), each to full relative precision and without overflow for any x.
struct Logistic {
  Vec at, complement;
  HWY_INLINE explicit Logistic(Vec x) {
    const Vec one = Set(1), e = Exp(hn::Neg(hn::Abs(x)));
    const Vec large = hn::Div(one, hn::Add(one, e)), small = hn::Mul(e, large);
    const auto positive = hn::Ge(x, hn::Zero(F32()));
    at = hn::IfThenElse(positive, large, small);
    complement = hn::IfThenElse(positive, small, large);
  }
  // of silu(x) = x σ(x)
  HWY_INLINE Vec SiluSlope(Vec x) const { return hn::Mul(at, hn::MulAdd(x, complement, Set(1))); }
};

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
