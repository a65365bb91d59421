// Linear beside what the machine allows: bytes of the weight per second against read bandwidth for few rows, operations per second for many against the peak
// of the level's arithmetic: f32 multiply-adds, or dot products of bf16 where x may be rounded ("fast"). The limits are measured in the same run; the greater
// ratio is printed as "of_limit".
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "ops/cpu/limits.h"
#include "ops/cpu/simd.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

struct Machine {
  ThreadPool threads{AvailableCores()};
  double bandwidth = 0, flops = 0, bf16_flops = 0;
  Machine() {
    cpu::ChooseSimd();
    bandwidth = cpu::ReadBandwidth(threads), flops = bf16_flops = cpu::FmaRate(threads);
    if (cpu::CurrentSimd() == cpu::SimdLevel::kAvx512Bf16) bf16_flops = cpu::Bf16DotRate(threads);
    if (cpu::CurrentSimd() == cpu::SimdLevel::kAmx) bf16_flops = cpu::Bf16TileRate(threads);
  }
};

Machine& ThisMachine() {
  static Machine machine;
  return machine;
}

void FillRandom(const Tensor& t, uint32_t seed) {
  std::minstd_rand random(seed);
  for (int64_t i = 0; i < t.rows(); i++) {
    for (int64_t j = 0; j < t.cols(); j++) {
      const float value = static_cast<float>(random()) * 1e-9f - 1;
      Convert(&value, Dtype::kF32, static_cast<char*>(t.data()) + static_cast<size_t>(i * t.cols() + j) * SizeOf(t.dtype()), t.dtype(), 1);
    }
  }
}

struct Operands {
  Tensor x, y, dx, dw;
  std::vector<Tensor> weights;  // several, where one alone would stay in the cache from call to call though a model's would not
  Context ctx;

  Operands(Dtype dtype, int64_t rows, int64_t in, int64_t out, size_t weight_bytes) {
    const size_t bytes = static_cast<size_t>(in * out) * SizeOf(dtype), copies = std::max<size_t>(1, weight_bytes / bytes);
    Workspace space(copies * (bytes + 64) + static_cast<size_t>(2 * rows * (in + out) + in * out + rows * in) * 4 + 4096);
    for (size_t i = 0; i < copies; i++) FillRandom(weights.emplace_back(space.Take(dtype, {out, in})), static_cast<uint32_t>(i + 1));
    x = space.Take(Dtype::kF32, {rows, in}), y = space.Take(Dtype::kF32, {rows, out}), dx = space.Take(Dtype::kF32, {rows, in});
    dw = space.Take(Dtype::kF32, {out, in});
    FillRandom(x, 77), FillRandom(y, 78);
    workspace = std::move(space);
    ctx.device = &cpu::kTable, ctx.threads = &ThisMachine().threads, ctx.workspace = &workspace;
  }
  Workspace workspace;
};

// Reports the best call: on a shared machine the mean tells what the neighbours did.
template <typename Call>
void Measure(benchmark::State& state, double flops, double bytes, double peak, const Call& call) {
  const Machine& machine = ThisMachine();
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  state.counters["best_us"] = best * 1e6;
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["of_limit"] = std::max(bytes / best / machine.bandwidth, flops / best / peak);
  state.SetLabel(
      fmt::format("{} {} threads, limits {:.1f} GB/s {:.0f} GFLOP/s", cpu::SimdName(), machine.threads.threads(), machine.bandwidth * 1e-9, peak * 1e-9));
}

enum class Product { kForward, kInputs, kWeights };

void BM_Linear(benchmark::State& state, Product product, Dtype dtype, bool cold, bool fast = false) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  Operands o(dtype, rows, in, out, cold ? size_t{256} << 20 : 1);
  o.ctx.precise = !fast;
  size_t call = 0;
  const double peak = fast ? ThisMachine().bf16_flops : ThisMachine().flops;
  Measure(state, 2.0 * static_cast<double>(rows * in * out), static_cast<double>(o.weights[0].bytes()), peak, [&] {
    const Tensor& weight = o.weights[call++ % o.weights.size()];
    switch (product) {
      case Product::kForward: return ops::Linear(o.ctx, o.x, {weight, {}}, o.y);
      case Product::kInputs: return ops::LinearBackward(o.ctx, o.x, {weight, {}}, o.y, Into::kWrite, o.dx, {});
      case Product::kWeights: return ops::LinearBackward(o.ctx, o.x, {weight, {}}, o.y, Into::kWrite, {}, {o.dw, {}});
    }
  });
}

// rows, in, out: matrices of Bamba-9B and of the shipped model.
BENCHMARK_CAPTURE(BM_Linear, stream_f32, Product::kForward, Dtype::kF32, true)->ArgsProduct({{1, 4}, {4096}, {16768}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, stream_bf16, Product::kForward, Dtype::kBf16, true)->ArgsProduct({{1, 2, 4, 8, 16}, {4096}, {16768}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, stream_f16, Product::kForward, Dtype::kF16, true)->ArgsProduct({{1, 4}, {4096}, {16768}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, stream_bf16_fast, Product::kForward, Dtype::kBf16, true, true)
    ->ArgsProduct({{1, 2, 4, 8, 16, 32}, {4096}, {16768}})
    ->Args({1, 14336, 4096})
    ->Args({4, 14336, 4096})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, many_bf16_fast, Product::kForward, Dtype::kBf16, false, true)
    ->ArgsProduct({{32, 512, 2048}, {4096}, {2048, 16768}})
    ->Args({512, 14336, 4096})
    ->Args({512, 256, 1024})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, small_bf16, Product::kForward, Dtype::kBf16, false)->ArgsProduct({{1, 16, 512}, {256}, {256, 1024, 8192}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, many_f32, Product::kForward, Dtype::kF32, false)
    ->ArgsProduct({{32, 512}, {4096}, {2048}})
    ->ArgsProduct({{256}, {256}, {256, 1024, 1160}})
    ->Args({256, 1024, 256})
    ->Args({256, 512, 256})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, many_bf16, Product::kForward, Dtype::kBf16, false)->ArgsProduct({{32, 512}, {4096}, {2048}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, many_f16, Product::kForward, Dtype::kF16, false)->Args({512, 4096, 2048})->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, dx_bf16, Product::kInputs, Dtype::kBf16, false)
    ->Args({512, 256, 1024})
    ->Args({512, 1024, 256})
    ->Args({512, 4096, 2048})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Linear, dw, Product::kWeights, Dtype::kF32, false)->Args({512, 256, 1024})->Args({512, 1024, 256})->Args({512, 4096, 2048})->UseRealTime();

}  // namespace
}  // namespace bamba
