#include "model/random_weights.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/params.h"

namespace bamba {
namespace {

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": neighbouring numbers become unrelated ones.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Numbers drawn at a time, by as many independent generators as keep vector registers busy (Marsaglia 2003, "Xorshift RNGs").
constexpr int64_t kDrawn = 2048;
constexpr int kGenerators = 16;

void Draw(uint32_t (&state)[kGenerators], float low, float high, float* out) {
  const float scale = (high - low) * 0x1p-32f, middle = (high + low) / 2;
  for (int64_t i = 0; i < kDrawn; i += kGenerators) {
    for (int j = 0; j < kGenerators; j++) {
      uint32_t x = state[j];
      x ^= x << 13, x ^= x >> 17, x ^= x << 5;
      state[j] = x;
      out[i + j] = middle + scale * static_cast<float>(static_cast<int32_t>(x));
    }
  }
}

struct Interval {
  float low, high;
};

Interval IntervalOf(const Param& p) {
  if (p.name.ends_with("A_log")) return {0, std::log(16.0f)};
  if (p.name.ends_with("dt_bias")) return {-5, -1};
  if (p.name.ends_with(".D") || p.role == Role::kNorm) return {0.5f, 1.5f};
  // Even numbers of [−a, a) have the variance a²/3: a row's product with activations of variance 1 has it too, at a = √(3 / columns).
  if (p.role == Role::kMatrix || p.role == Role::kEmbedding) {
    const float a = std::sqrt(3 / static_cast<float>(p.shape[1]));
    return {-a, a};
  }
  return {-0.5f, 0.5f};
}

}  // namespace

void FillRandom(ThreadPool& threads, const Tensor& tensor, uint64_t seed, float low, float high) {
  CHECK_MSG(tensor.contiguous(), "{}", tensor.ShapeString());
  constexpr int64_t kPiece = 64 * kDrawn;  // numbers that one seed gives, so that they do not depend on who draws them
  threads.For(tensor.size(), kPiece, [&](int64_t begin, int64_t end, int) {
    uint32_t state[kGenerators];
    for (int j = 0; j < kGenerators; j++) state[j] = static_cast<uint32_t>(Mix(Mix(seed) + static_cast<uint64_t>(begin + j))) | 1;  // 0 would stay 0
    float drawn[kDrawn];
    for (int64_t i = begin; i < end; i += kDrawn) {
      Draw(state, low, high, drawn);
      Convert(drawn, Dtype::kF32, static_cast<char*>(tensor.data()) + static_cast<size_t>(i) * SizeOf(tensor.dtype()), tensor.dtype(),
              static_cast<size_t>(std::min(kDrawn, end - i)));
    }
  });
}

bool FillRandom(Model& model, uint64_t seed, const std::function<bool(const Tensor&, uint64_t, float, float)>& fill) {
  for (const Param& p : Parameters(model.config, model.weights)) {
    const auto [low, high] = IntervalOf(p);
    if (!fill(*p.tensor, seed++, low, high)) return false;
  }
  return true;
}

bool FillRandom(ThreadPool& threads, Model& model, uint64_t seed, const std::function<bool(int64_t)>& proceed) {
  int64_t done = 0;
  return FillRandom(model, seed, [&](const Tensor& tensor, uint64_t each, float low, float high) {
    FillRandom(threads, tensor, each, low, high);
    return proceed(done += static_cast<int64_t>(tensor.bytes()));
  });
}

}  // namespace bamba
