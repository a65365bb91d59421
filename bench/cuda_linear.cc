// Linear on the GPU with Bamba-9B's matrices: µs, and the part of what the memory (4.6 TB/s) or the tensor cores (790 TFLOP/s) allow, whichever takes longer.
// --sweep: cuBLASLt's proposals one by one instead, for ops/cuda/cublas.cu's table.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

constexpr double kBandwidth = 4.6e12, kFlops = 790e12, kF32Flops = 60e12;
constexpr int kLaunches = 20;

struct Case {
  const char* name;
  int64_t out, in;
  bool wide = false;   // f32 results
  bool gated = false;  // half of the outputs are gate, half up, with SwiGLU behind them
};
constexpr Case kCases[] = {{"in_proj", 16768, 4096}, {"out_proj", 4096, 8192}, {"gate_up", 28672, 4096}, {"+ swiglu", 28672, 4096, false, true},
                           {"down", 4096, 14336},    {"qkv", 6144, 4096},      {"o", 4096, 4096},        {"head", 128256, 4096, true}};
constexpr size_t kWeights = size_t{128256} * 4096 * 2 + (size_t{1} << 20);

class Bench {
 public:
  explicit Bench(Accelerator* gpu) : gpu_(gpu), workspace_(kWeights + (size_t{8192} * 28672 * 2) * 2 + (size_t{512} * 128256 * 4), gpu), threads_(1) {
    ctx_.device = &gpu->ops(), ctx_.accelerator = gpu, ctx_.threads = &threads_, ctx_.workspace = &workspace_;
    weights_ = static_cast<char*>(workspace_.Allocate(kWeights));
    std::minstd_rand random(1);
    std::vector<float> numbers(size_t{1} << 22);
    for (float& v : numbers) v = (static_cast<float>(random() % 65536) / 32768 - 1) * 0.02f;
    random_.resize(numbers.size() * 2);
    Convert(numbers.data(), Dtype::kF32, random_.data(), Dtype::kBf16, numbers.size());
    Fill(weights_, kWeights);
  }

  // Seconds of one product. `settle`: after so many seconds of them, when the card has found the clock that its power limit allows.
  double Time(const Case& c, int64_t rows, Dtype activations, Dtype weights, bool invariant, double settle = 0) {
    ctx_.dtype = activations, ctx_.invariant = invariant;
    Frame frame(ctx_);
    const Tensor x = ctx_.Temp({rows, c.in}), y = workspace_.Take(c.wide ? Dtype::kF32 : activations, {rows, c.out});
    const Tensor act = c.gated ? ctx_.Temp({rows, c.out / 2}) : Tensor();
    if (activations == Dtype::kBf16) Fill(static_cast<char*>(x.data()), x.bytes());
    const size_t bytes = static_cast<size_t>(c.out * c.in) * SizeOf(weights), copies = std::clamp<size_t>(kWeights / bytes, 1, kLaunches);
    CHECK(bytes <= kWeights);
    int next = 0;
    const auto product = [&] {
      const Tensor w(weights_ + static_cast<size_t>(next++) % copies * bytes, weights, {c.out, c.in});
      c.gated ? ops::SwiGluLinears(ctx_, x, {w.Rows(0, c.out / 2), {}}, {w.Rows(c.out / 2, c.out / 2), {}}, y, act) : ops::Linear(ctx_, x, {w, {}}, y);
    };
    for (int i = 0; i < 3; i++) product();
    gpu_->Wait();
    const auto time = [&](int launches) {
      return gpu_->Seconds([&] {
        for (int i = 0; i < launches; i++) product();
      }) / launches;
    };
    const double first = time(kLaunches);
    if (settle == 0) return first;
    const int many = static_cast<int>(settle / first) + kLaunches;
    time(many);
    return time(many);
  }

 private:
  void Fill(char* to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += random_.size()) gpu_->Upload(to + at, random_.data(), std::min(random_.size(), bytes - at));
  }

  Accelerator* gpu_;
  Workspace workspace_;
  ThreadPool threads_;
  Context ctx_;
  char* weights_;
  std::vector<char> random_;
};

double Limit(const Case& c, int64_t rows, double flops, double size) {
  const double weights = static_cast<double>(c.out * c.in), n = static_cast<double>(rows);
  const double bytes = weights * size + n * static_cast<double>(c.in) * size + n * static_cast<double>(c.out) * (c.wide ? 4 : size);
  return std::max(bytes / kBandwidth, 2 * weights * n / flops);
}

void Sweep(Bench& bench) {
  constexpr double kSettle = 0.15;
  fmt::print("us by proposal 0 … 7, our own (batch-invariant)\n");
  for (const Case& c : kCases)
    for (int64_t rows : {96, 128, 192, 256, 512, 2048, 4096}) {
      if (c.gated || (c.wide && rows > 512) || (!c.wide && c.out > 10000 && rows == 128)) continue;  // the last has a kernel of its own
      fmt::print("{:9} {:5} ", c.name, rows);
      double best = 1e9;
      int choice = 0;
      for (int i = 0; i < 8; i++) {
        setenv("BAMBA_CUBLASLT_CHOICE", std::to_string(i).c_str(), 1);
        const double seconds = bench.Time(c, rows, Dtype::kBf16, Dtype::kBf16, false, kSettle);
        fmt::print(" {:7.1f}", seconds * 1e6);
        if (seconds < best) best = seconds, choice = i;
      }
      fmt::print(" | {:7.1f}", bench.Time(c, rows, Dtype::kBf16, Dtype::kBf16, true, kSettle) * 1e6);
      fmt::print("   {{{}, {}, {}, {}}},  {:.0f} TFLOP/s\n", rows, c.out, c.in, choice, 2e-12 * static_cast<double>(c.out * c.in * rows) / best);
      std::fflush(stdout);
    }
}

void Table(Bench& bench) {
  constexpr int64_t kRows[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 4096};
  for (const bool invariant : {false, true}) {
    fmt::print("\nbf16, {}: us (% of the limit)\n{:9}", invariant ? "invariant" : "default", "");
    for (int64_t rows : kRows) fmt::print(" {:>13}", rows);
    fmt::print("\n");
    for (const Case& c : kCases) {
      fmt::print("{:9}", c.name);
      for (int64_t rows : kRows) {
        if (c.wide && rows > 512) continue;
        const double seconds = bench.Time(c, rows, Dtype::kBf16, Dtype::kBf16, invariant);
        fmt::print(" {:7.1f} ({:3.0f})", seconds * 1e6, 100 * Limit(c, rows, kFlops, 2) / seconds);
      }
      fmt::print("\n");
    }
  }
  fmt::print("\nf32: us (% of the limit, {} TFLOP/s)\n", kF32Flops * 1e-12);
  for (const Case& c : {kCases[0], kCases[4], kCases[6]}) {
    fmt::print("{:9}", c.name);
    for (int64_t rows : {1, 2, 4, 8, 16, 64, 512}) {
      const double seconds = bench.Time(c, rows, Dtype::kF32, Dtype::kF32, false);
      fmt::print(" {}: {:.1f} ({:.0f})", rows, seconds * 1e6, 100 * Limit(c, rows, kF32Flops, 4) / seconds);
    }
    fmt::print("\n");
  }
}

}  // namespace
}  // namespace bamba

int main(int argc, char** argv) {
  std::string reason;
  bamba::Accelerator* const gpu = bamba::OpenCuda(&reason);
  if (!gpu) {
    fmt::print("no GPU: {}\n", reason);
    return 1;
  }
  fmt::print("{}\n", gpu->name());
  bamba::Bench bench(gpu);
  if (argc > 1 && std::string(argv[1]) == "--sweep")
    bamba::Sweep(bench);
  else
    bamba::Table(bench);
}
