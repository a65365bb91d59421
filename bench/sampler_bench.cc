// A choice from Bamba-9B's vocabulary beside a decode step of that model: the bytes that the step streams at this machine's read bandwidth, measured in the
// same run. "of_step" is the figure to keep below 0.01.
#include "engine/sampler.h"

#include <benchmark/benchmark.h>

#include <chrono>
#include <random>

#include "base/thread_pool.h"
#include "engine/logprobs.h"
#include "ops/cpu/limits.h"
#include "ops/cpu/simd.h"

namespace bamba {
namespace {

constexpr size_t kVocab = 128256;
constexpr double kStepBytes = 18.51e9;  // bf16

double StepSeconds() {
  static const double seconds = [] {
    cpu::ChooseSimd();
    ThreadPool threads(AvailableCores());
    return kStepBytes / cpu::ReadBandwidth(threads);
  }();
  return seconds;
}

// `spread` is the logits' standard deviation: 3 is like a model's, 0.1 a distribution with nothing to cut off.
std::vector<float> Logits(double spread) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, static_cast<float>(spread));
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = normal(random);
  return logits;
}

// Reports the best call: on a shared machine the mean tells what the neighbours did.
template <typename Call>
void Measure(benchmark::State& state, const Call& call) {
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    benchmark::DoNotOptimize(call());
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  state.counters["best_us"] = best * 1e6;
  state.counters["of_step"] = best / StepSeconds();
}

void BM_Sample(benchmark::State& state, const Sampling& sampling, double spread) {
  const auto logits = Logits(spread);
  const std::vector<int32_t> prompt = {1, 2, 3, 5, 8, 13};
  Sampler sampler(sampling, prompt, kVocab);
  SamplerSpace space;
  uint64_t step = 0;
  Measure(state, [&] { return sampler.Sample(logits, step++, space); });
}

void BM_Logprobs(benchmark::State& state) {
  const auto logits = Logits(3);
  Measure(state, [&] { return Logprobs(logits, 7, state.range(0)).token.logprob; });
}

BENCHMARK_CAPTURE(BM_Sample, greedy, Sampling{}, 3);
BENCHMARK_CAPTURE(BM_Sample, temperature, Sampling{.temperature = 0.8}, 3);
BENCHMARK_CAPTURE(BM_Sample, defaults, (Sampling{.temperature = 0.8, .top_p = 0.95}), 3);
BENCHMARK_CAPTURE(BM_Sample, defaults_flat, (Sampling{.temperature = 0.8, .top_p = 0.95}), 0.1);
BENCHMARK_CAPTURE(BM_Sample, top_k, (Sampling{.temperature = 0.8, .top_k = 40}), 3);
BENCHMARK_CAPTURE(BM_Sample, everything,
                  (Sampling{.logit_bias = {{3, 5}, {4, -100}},
                            .repetition_penalty = 1.1,
                            .presence_penalty = 0.5,
                            .frequency_penalty = 0.5,
                            .temperature = 0.8,
                            .top_k = 100000,
                            .top_p = 0.99,
                            .min_p = 1e-9,
                            .typical_p = 0.9}),
                  1);
BENCHMARK(BM_Logprobs)->Arg(0)->Arg(20);

}  // namespace
}  // namespace bamba
