// Ops of the forward pass other than Linear, at the shapes of the small model that ships inside and of Bamba-9B: one decoded token, and prompts.
// Counters: GB/s of the memory that an op must touch at least once (its operands, its state), GFLOP/s where arithmetic dominates.
//
//   build/release/bench/ops_bench --benchmark_filter=Ssd
#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <vector>

#include "base/thread_pool.h"
#include "ops/op_table.h"
#include "ops/ops.h"

namespace bamba {
namespace {

struct Shapes {
  const char* name;
  int64_t dim, ffn, vocab;
  SsdShape ssd;
  AttentionShape attention;
};

const Shapes kShapes[] = {{"mini", 256, 1024, 8192, {8, 64, 64, 1, 0, 1e30}, {4, 2, 64, 0.125}},
                          {"9B", 4096, 14336, 128256, {128, 64, 128, 1, 0, 1e30}, {32, 8, 128, 0.09}}};

// Operands of random numbers, and a sequence that stands at `position`.
class Bench {
 public:
  explicit Bench(benchmark::State& state) : shapes(kShapes[state.range(0)]), rows(state.range(1)), threads_(AvailableCores()) {
    ctx.device = &cpu::kTable, ctx.threads = &threads_;
    state.SetLabel(shapes.name + std::string(", ") + std::to_string(rows) + " rows");
  }
  Tensor Random(std::initializer_list<int64_t> shape) {
    int64_t size = 1;
    for (int64_t s : shape) size *= s;
    auto& data = storage_.emplace_back(static_cast<size_t>(size));
    std::normal_distribution<float> normal;
    for (float& v : data) v = normal(random_);
    return Tensor(data.data(), Dtype::kF32, shape);
  }
  Batch At(int64_t position) {
    Batch batch = StatelessBatch(std::vector<int32_t>(static_cast<size_t>(rows), 1));
    batch.sequences[0].position = position, batch.sequences[0].slot = 0;
    return batch;
  }
  MambaState State(int64_t d_conv) {
    const SsdShape& s = shapes.ssd;
    return {Random({1, d_conv - 1, s.conv_dim()}), Random({1, kSsdChunk, s.conv_dim()}), Random({1, kSsdChunk, s.heads}),
            Random({1, 1, s.heads, s.head_dim, s.state})};
  }

  const Shapes& shapes;
  const int64_t rows;
  Context ctx;

 private:
  ThreadPool threads_;
  std::mt19937 random_{1};
  std::vector<std::vector<float>> storage_;
};

// Per iteration.
void Rate(benchmark::State& state, const char* unit, double amount) {
  state.counters[unit] = benchmark::Counter(amount * static_cast<double>(state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

double Bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) sum += static_cast<double>(t.bytes());
  return sum;
}

void AddRmsNorm(benchmark::State& state) {
  Bench b(state);
  const Tensor x = b.Random({b.rows, b.shapes.dim}), y = b.Random({b.rows, b.shapes.dim}), u = b.Random({b.rows, b.shapes.dim}), w = b.Random({b.shapes.dim});
  for (auto _ : state) ops::AddRmsNorm(b.ctx, x, y, 1e-9, w, 1e-5, x, u);
  Rate(state, "GB/s", Bytes({x, x, y, u}));
}

void GatedRmsNorm(benchmark::State& state) {
  Bench b(state);
  const int64_t inner = b.shapes.ssd.inner();
  const Tensor y = b.Random({b.rows, inner}), z = b.Random({b.rows, inner}), w = b.Random({inner}), out = b.Random({b.rows, inner});
  for (auto _ : state) ops::GatedRmsNorm(b.ctx, y, z, w, 1, 1e-5, out);
  Rate(state, "GB/s", Bytes({y, z, out}));
}

void SwiGlu(benchmark::State& state) {
  Bench b(state);
  const Tensor gate = b.Random({b.rows, b.shapes.ffn}), up = b.Random({b.rows, b.shapes.ffn}), y = b.Random({b.rows, b.shapes.ffn});
  for (auto _ : state) ops::SwiGlu(b.ctx, gate, up, y);
  Rate(state, "GB/s", Bytes({gate, up, y}));
}

void CausalConvSilu(benchmark::State& state) {
  Bench b(state);
  const int64_t channels = b.shapes.ssd.conv_dim(), d_conv = 4;
  const Tensor x = b.Random({b.rows, channels}), w = b.Random({channels, 1, d_conv}), bias = b.Random({channels}), y = b.Random({b.rows, channels});
  const MambaState states = b.State(d_conv);
  const Batch batch = b.At(1000);
  for (auto _ : state) ops::CausalConvSilu(b.ctx, x, w, bias, batch, states, y);
  Rate(state, "GB/s", Bytes({x, y, states.conv, states.conv}));
}

// One token costs more the later it comes in its chunk: 31 is the dearest, 16 the mean.
void SsdScan(benchmark::State& state) {
  Bench b(state);
  const SsdShape& s = b.shapes.ssd;
  const Tensor xbc = b.Random({b.rows, s.conv_dim()}), dt = b.Random({b.rows, s.heads}), y = b.Random({b.rows, s.inner()});
  const Tensor bias = b.Random({s.heads}), a_log = b.Random({s.heads}), d = b.Random({s.heads});
  const MambaState states = b.State(4);
  const Batch batch = b.At(b.rows == 1 ? 1024 + 16 : 1024);
  for (auto _ : state) ops::SsdScan(b.ctx, xbc, dt, bias, a_log, d, s, batch, states, y);
  if (b.rows == 1)
    Rate(state, "GB/s", Bytes({states.ssm}) + Bytes({states.xbc}) / 2);
  else  // S·C and the update of S; C·B and the sum over x, half of the chunk on average
    Rate(state, "GFLOP/s", 2.0 * static_cast<double>(b.rows * s.heads * (2 * s.head_dim * s.state + kSsdChunk / 2 * (s.head_dim + s.state))));
}

void Attention(benchmark::State& state) {
  Bench b(state);
  const AttentionShape& s = b.shapes.attention;
  const int64_t q_columns = s.heads * s.head_dim, kv_columns = s.kv_heads * s.head_dim, position = b.rows == 1 ? 4095 : 0;
  const Tensor q = b.Random({b.rows, q_columns}), k = b.Random({b.rows, kv_columns}), v = b.Random({b.rows, kv_columns}), y = b.Random({b.rows, q_columns});
  std::vector<int32_t> pages(64);
  std::iota(pages.begin(), pages.end(), 0);
  const KvPages kv = {b.Random({64, kKvBlock, s.kv_heads, s.head_dim}), b.Random({64, kKvBlock, s.kv_heads, s.head_dim})};
  Batch batch = b.At(position);
  batch.sequences[0].pages = pages.data();
  for (auto _ : state) ops::Attention(b.ctx, q, k, v, s, batch, kv, y);
  const double pairs = static_cast<double>(s.heads) * static_cast<double>(b.rows) * (static_cast<double>(position) + static_cast<double>(b.rows + 1) / 2);
  if (b.rows == 1)
    Rate(state, "GB/s", Bytes({kv.k, kv.v}));
  else
    Rate(state, "GFLOP/s", 4 * pairs * static_cast<double>(s.head_dim));
}

void Rope(benchmark::State& state) {
  Bench b(state);
  const AttentionShape& s = b.shapes.attention;
  const Tensor x = b.Random({b.rows, s.heads * s.head_dim});
  const Batch batch = b.At(1000);
  for (auto _ : state) ops::Rope(b.ctx, x, {s.heads, s.head_dim, s.head_dim / 2, 10000}, batch);
  Rate(state, "GB/s", 2 * Bytes({x}));
}

void CrossEntropy(benchmark::State& state) {
  Bench b(state);
  const int64_t rows = std::min<int64_t>(b.rows, 128);  // as head.cc takes them
  const Tensor logits = b.Random({rows, b.shapes.vocab}), nll = b.Random({rows});
  const std::vector<int32_t> labels(static_cast<size_t>(rows), 7);
  for (auto _ : state) ops::CrossEntropy(b.ctx, logits, labels, nll);
  Rate(state, "GB/s", Bytes({logits}));
}

void ShapesAndRows(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgsProduct({{0, 1}, {1, 512, 2048}})->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(AddRmsNorm)->Apply(ShapesAndRows);
BENCHMARK(GatedRmsNorm)->Apply(ShapesAndRows);
BENCHMARK(SwiGlu)->Apply(ShapesAndRows);
BENCHMARK(CausalConvSilu)->Apply(ShapesAndRows);
BENCHMARK(SsdScan)->Apply(ShapesAndRows);
BENCHMARK(Attention)->Apply(ShapesAndRows);
BENCHMARK(Rope)->Apply(ShapesAndRows);
BENCHMARK(CrossEntropy)->Apply(ShapesAndRows);

}  // namespace
}  // namespace bamba
