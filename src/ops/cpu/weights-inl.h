// Weights in registers, for each SIMD level: included by the ops between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE, so guarded per target.
#if defined(BAMBA_OPS_CPU_WEIGHTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef BAMBA_OPS_CPU_WEIGHTS_INL_H
#undef BAMBA_OPS_CPU_WEIGHTS_INL_H
#else
#define BAMBA_OPS_CPU_WEIGHTS_INL_H
#endif

#include <cstring>

#include "base/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vec = hn::Vec<Floats>;
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Floats()));

// The f32 values, exact, of kLanes weights.
HWY_INLINE Vec LoadWeights(const float* p) { return hn::LoadU(Floats(), p); }
HWY_INLINE Vec LoadWeights(const Bf16* p) {
  return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, Floats>(), reinterpret_cast<const hwy::bfloat16_t*>(p)));
}
HWY_INLINE Vec LoadWeights(const F16* p) {
  return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<hwy::float16_t, Floats>(), reinterpret_cast<const hwy::float16_t*>(p)));
}

#if HWY_TARGET == HWY_AVX2
// The same by one shuffle instead of two instructions and more, if there is a register for its pattern: both halves of a vector are loaded with all eight, and
// each takes four.
HWY_INLINE Vec ShuffleWeights(const Bf16* p) {
  const __m256i pattern = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                           -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return Vec{_mm256_castsi256_ps(_mm256_shuffle_epi8(both, pattern))};
}
#endif

// Likewise of kLanes / 2 weights from each of two places.
HWY_INLINE Vec LoadTwoHalves(const float* low, const float* high) {
  const hn::Half<Floats> half;
  return hn::Combine(Floats(), hn::LoadU(half, high), hn::LoadU(half, low));
}
template <typename Half, typename W>
HWY_INLINE Vec PromoteTwoHalves(const W* low, const W* high) {
  const hn::Rebind<Half, Floats> whole;
  const hn::Half<decltype(whole)> half;
  const hn::RebindToUnsigned<decltype(whole)> bits;  // of 16 bits there is Combine for integers alone
  const hn::Half<decltype(bits)> half_bits;
  const auto load = [&](const W* p) HWY_ATTR { return hn::BitCast(half_bits, hn::LoadU(half, reinterpret_cast<const Half*>(p))); };
  return hn::PromoteTo(Floats(), hn::BitCast(whole, hn::Combine(bits, load(high), load(low))));
}
HWY_INLINE Vec LoadTwoHalves(const Bf16* low, const Bf16* high) { return PromoteTwoHalves<hwy::bfloat16_t>(low, high); }
HWY_INLINE Vec LoadTwoHalves(const F16* low, const F16* high) { return PromoteTwoHalves<hwy::float16_t>(low, high); }

// The f32 values of the first n < kLanes; the lanes after them are 0, and nothing past them is read.
template <typename W>
HWY_INLINE Vec LoadWeightsPartly(const W* p, int64_t n) {
  HWY_ALIGN W padded[kLanes] = {};
  std::memcpy(static_cast<void*>(padded), p, static_cast<size_t>(n) * sizeof(W));
  return LoadWeights(padded);
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
