#include "ops/cpu/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "ops/cpu/simd.h"
#include "ops/cpu/x86_limits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/limits.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;

// Independent sums, more than any processor's latency × units needs.
constexpr int kSums = 12;

float SumUp(const float* p, int64_t n) {
  const Floats f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f));
  auto a = hn::Zero(f), b = a, c = a, d = a;
  for (int64_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
    a = hn::Add(a, hn::LoadU(f, p + i)), b = hn::Add(b, hn::LoadU(f, p + i + lanes));
    c = hn::Add(c, hn::LoadU(f, p + i + 2 * lanes)), d = hn::Add(d, hn::LoadU(f, p + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(f, hn::Add(hn::Add(a, b), hn::Add(c, d))));
}

double MultiplyAdd(int64_t rounds) {
  static std::atomic<float> sink;  // so that the compiler must compute the sums
  const Floats f;
  const auto factor = hn::Set(f, 0.999999f), term = hn::Set(f, 1e-7f);
  hn::Vec<Floats> x[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) x[i] = hn::Set(f, static_cast<float>(i));  // different, or the compiler would compute one alone
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (auto& v : x) v = hn::MulAdd(v, factor, term);
  for (int i = 1; i < kSums; i++) x[0] = hn::Add(x[0], x[i]);
  sink = hn::GetLane(x[0]);
  return 2.0 * kSums * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(f));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {
namespace {

HWY_EXPORT(SumUp);
HWY_EXPORT(MultiplyAdd);

// The best amount/second of run(), which gives the amount, in about `seconds`.
template <typename Run>
double BestRate(double seconds, const Run& run) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    const double amount = run();
    best = std::max(best, amount / since(start));
  } while (since(begin) < seconds);
  return best;
}

double RateOf(ArithmeticKernel kernel, ThreadPool& threads, double seconds) {
  constexpr int64_t kRounds = 1 << 15, kPiecesPerThread = 8;
  if (!kernel) return 0;
  return BestRate(seconds, [&] {
    std::atomic<double> operations{0};
    threads.For(kPiecesPerThread * threads.threads(), 1, [&](int64_t, int64_t, int) { operations.fetch_add(kernel(kRounds)); });
    return operations.load();
  });
}

}  // namespace

ReadProbe::ReadProbe(ThreadPool& threads, size_t bytes)
    : threads_(threads),
      buffer_(bytes),
      count_(static_cast<int64_t>(bytes / sizeof(float))),
      piece_(std::clamp<int64_t>(count_ / (128 * threads.threads()), 4096, 1 << 20)) {
  float* data = reinterpret_cast<float*>(buffer_.data());
  threads_.For(count_, piece_, [&](int64_t begin, int64_t end, int) {
    uint32_t random = static_cast<uint32_t>(begin) | 1;
    for (int64_t i = begin; i < end; i++) data[i] = static_cast<float>(random = random * 1664525 + 1013904223);
  });
}

double ReadProbe::Bandwidth(double seconds) {
  const float* data = reinterpret_cast<const float*>(buffer_.data());
  std::atomic<float> sink{0};
  return BestRate(seconds, [&] {
    threads_.For(count_, piece_, [&](int64_t begin, int64_t end, int) { sink = HWY_DYNAMIC_DISPATCH(SumUp)(data + begin, end - begin); });
    return static_cast<double>(buffer_.size());
  });
}

double FmaRate(ThreadPool& threads, double seconds) {
  return RateOf([](int64_t rounds) { return HWY_DYNAMIC_DISPATCH(MultiplyAdd)(rounds); }, threads, seconds);
}

double Bf16DotRate(ThreadPool& threads, double seconds) { return RateOf(Bf16DotKernel(), threads, seconds); }
double Int8DotRate(ThreadPool& threads, double seconds) { return RateOf(Int8DotKernel(), threads, seconds); }
double Bf16TileRate(ThreadPool& threads, double seconds) { return RateOf(Bf16TileKernel(), threads, seconds); }
double Int8TileRate(ThreadPool& threads, double seconds) { return RateOf(Int8TileKernel(), threads, seconds); }

ArithmeticRate LinearRate(Dtype weights, bool precise) {
  const bool narrow = weights == Dtype::kBf16 && !precise;
  if (narrow && CurrentSimd() == SimdLevel::kAmx) return Bf16TileRate;
  if (narrow && CurrentSimd() == SimdLevel::kAvx512Bf16) return Bf16DotRate;
  return FmaRate;
}

}  // namespace bamba::cpu
#endif
