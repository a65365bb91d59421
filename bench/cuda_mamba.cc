// Norms, convolution and scan of Bamba-9B on the GPU: time of a call, and the fraction of what the memory (4.6 TB/s) would allow. Inputs rotate over more
// memory than the L2 cache has.
#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "base/buffer.h"
#include "ops/accelerator.h"
#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

constexpr SsdShape kShape = {128, 64, 128, 1, 0, std::numeric_limits<double>::infinity()};
constexpr int64_t kDim = 4096, kProjected = 16768, kTaps = 4;
constexpr double kBandwidth = 4.6e12;

class Bench {
 public:
  explicit Bench(Accelerator* accelerator) : accelerator_(accelerator), memory_(size_t{24} << 30, accelerator), threads_(1) {
    ctx.device = &accelerator->ops(), ctx.accelerator = accelerator, ctx.dtype = Dtype::kBf16, ctx.threads = &threads_, ctx.workspace = &memory_;
    ctx.precise = false;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& v : pattern_) v = normal(random);
    device_pattern_ = New(Dtype::kF32, {static_cast<int64_t>(pattern_.size())});
    accelerator_->Upload(device_pattern_.data(), pattern_.data(), device_pattern_.bytes());
    bf16_pattern_ = New(Dtype::kBf16, {static_cast<int64_t>(pattern_.size())});
    std::vector<char> bf16s(bf16_pattern_.bytes());
    Convert(pattern_.data(), Dtype::kF32, bf16s.data(), Dtype::kBf16, pattern_.size());
    accelerator_->Upload(bf16_pattern_.data(), bf16s.data(), bf16s.size());
    mark_ = memory_.used();
  }
  void Clear() { memory_.ReleaseTo(mark_); }
  Tensor New(Dtype dtype, std::initializer_list<int64_t> shape) {
    Tensor t = memory_.Take(dtype, shape);
    if (device_pattern_ && bf16_pattern_) Fill(t);
    return t;
  }
  // Random numbers, the same ones over and over.
  void Fill(const Tensor& t) {
    const Tensor& pattern = t.dtype() == Dtype::kBf16 ? bf16_pattern_ : device_pattern_;
    for (size_t done = 0; done < t.bytes(); done += pattern.bytes())
      accelerator_->Copy(static_cast<char*>(t.data()) + done, pattern.data(), std::min(pattern.bytes(), t.bytes() - done));
  }
  Tensor Vector(std::initializer_list<int64_t> shape, const std::function<float()>& draw) {
    Tensor t = memory_.Take(Dtype::kF32, shape);
    std::vector<float> values(static_cast<size_t>(t.size()));
    for (float& v : values) v = draw();
    accelerator_->Upload(t.data(), values.data(), t.bytes());
    return t;
  }

  // Prints the time of run(i), i counting the calls, and what part of it the bytes take at full bandwidth.
  double Print(const std::string& name, double bytes, int64_t tokens, const std::function<void(int)>& run) {
    int call = 0;
    run(call++);  // loads the kernel
    accelerator_->Wait();
    const double once = accelerator_->Seconds([&] { run(call++); });
    // As a graph, so that the host's launches don't count.
    const int count = std::clamp(static_cast<int>(0.03 / once), 20, 200);
    const auto all = [&] {
      accelerator_->Replay(key_, [&] {
        for (int i = 0; i < count; i++) run(call++);
      });
    };
    all();
    const double seconds = accelerator_->Seconds(all) / count;
    key_++;
    fmt::print("{:<34} {:>9.2f} µs  {:>5.1f} % of bandwidth  {:>8.2f} Mtok/s\n", name, seconds * 1e6, 100 * bytes / kBandwidth / seconds,
               static_cast<double>(tokens) / seconds * 1e-6);
    return seconds;
  }

  Context ctx;

 private:
  Accelerator* accelerator_;
  Workspace memory_;
  ThreadPool threads_;
  std::vector<float> pattern_ = std::vector<float>(1 << 22);
  Tensor device_pattern_, bf16_pattern_;
  size_t mark_ = 0;
  uint64_t key_ = 1;
};

// Buffers to rotate over, for rows of so many bytes: beyond the L2 cache, within reason.
int64_t Copies(double bytes) { return std::clamp<int64_t>(static_cast<int64_t>(160e6 / bytes) + 1, 1, 64); }

Batch Sequences(int64_t count, int64_t rows, const std::function<int64_t(int64_t)>& position, bool slots) {
  Batch batch;
  batch.tokens.resize(static_cast<size_t>(count * rows));
  for (int64_t i = 0; i < count; i++)
    batch.sequences.push_back({.row = i * rows, .rows = rows, .position = position(i), .slot = slots ? static_cast<int32_t>(i) : -1});
  return batch;
}

void Norms(Bench& bench, int64_t rows) {
  bench.Clear();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const double bytes = static_cast<double>(rows) * (kDim * 4 + kProjected * 2);
  const auto n = Copies(bytes);
  std::vector<Tensor> x, y, in, inner, u, gated;
  for (int64_t i = 0; i < n; i++) {
    x.push_back(bench.New(Dtype::kF32, {rows, kDim})), y.push_back(bench.New(Dtype::kBf16, {rows, kDim})), u.push_back(bench.New(Dtype::kBf16, {rows, kDim}));
    in.push_back(bench.New(Dtype::kBf16, {rows, kProjected})), inner.push_back(bench.New(Dtype::kBf16, {rows, kShape.inner()}));
    gated.push_back(bench.New(Dtype::kBf16, {rows, kShape.inner()}));
  }
  const Tensor w = bench.Vector({kDim}, [&] { return normal(random); }), wide_w = bench.Vector({kShape.inner()}, [&] { return normal(random); });
  const auto of = [n](const std::vector<Tensor>& v, int i) { return v[static_cast<size_t>(i % n)]; };
  const auto d = static_cast<double>(rows * kDim), e = static_cast<double>(rows * kShape.inner());
  bench.Print(fmt::format("RmsNorm, {} rows", rows), d * 6, rows, [&](int i) { ops::RmsNorm(bench.ctx, of(x, i), w, 1e-5, of(u, i)); });
  bench.Print(fmt::format("AddRmsNorm, {} rows", rows), d * 12, rows,
              [&](int i) { ops::AddRmsNorm(bench.ctx, of(x, i), of(y, i), 1, w, 1e-5, of(x, i), of(u, i)); });
  bench.Print(fmt::format("GatedRmsNorm, {} rows", rows), e * 6, rows, [&](int i) {
    ops::GatedRmsNorm(bench.ctx, of(inner, i), of(in, i).Columns({0, kShape.inner()}), wide_w, 1, 1e-5, of(gated, i));
  });
}

void Convolution(Bench& bench, int64_t sequences, int64_t rows_each) {
  bench.Clear();
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const int64_t rows = sequences * rows_each, channels = kShape.conv_dim();
  const auto n = Copies(static_cast<double>(rows * channels) * 4);
  std::vector<Tensor> in, out, ring;
  for (int64_t i = 0; i < n; i++) {
    in.push_back(bench.New(Dtype::kBf16, {rows, kProjected})), out.push_back(bench.New(Dtype::kBf16, {rows, channels}));
    ring.push_back(bench.New(Dtype::kBf16, {sequences, kTaps - 1, channels}));
  }
  const Tensor w = bench.Vector({channels, 1, kTaps}, [&] { return normal(random); }), bias = bench.Vector({channels}, [&] { return normal(random); });
  const Batch batch = Sequences(
      sequences, rows_each, [&](int64_t i) { return rows_each == 1 ? 100 + 7 * i : 0; }, true);
  ops::Begin(bench.ctx, batch);
  const double ring_bytes = rows_each == 1 ? 4 : 1;  // read and written
  bench.Print(fmt::format("CausalConvSilu, {} x {} rows", sequences, rows_each),
              static_cast<double>(rows * channels) * 4 + ring_bytes * 2 * static_cast<double>(sequences * channels), rows, [&](int i) {
                const auto k = static_cast<size_t>(i % n);
                ops::CausalConvSilu(bench.ctx, in[k].Columns({kShape.inner(), channels}), w, bias, batch, {.conv = ring[k]}, out[k]);
              });
}

// `conv`: with the convolution ahead of it.
void Scan(Bench& bench, int64_t sequences, int64_t rows_each, bool conv) {
  bench.Clear();
  std::mt19937 random(4);
  std::uniform_real_distribution<float> biases(-5, -1), logs(0, 2.7F), skips(0.5, 1.5);
  const int64_t rows = sequences * rows_each, heads = kShape.heads, state_size = kShape.inner() * kShape.state;
  const bool one = rows_each == 1;
  const auto row_bytes = static_cast<double>(kShape.conv_dim() + kShape.inner() + heads) * 2;
  const double state_bytes = static_cast<double>(state_size) * 4;
  const double ring_bytes = conv ? static_cast<double>(kTaps * kShape.conv_dim()) * 2 : 0;  // read and written
  const auto n = std::min(Copies(one ? state_bytes * static_cast<double>(sequences) : row_bytes * static_cast<double>(rows)), int64_t{32});
  std::vector<Tensor> in, xbc, steps, out;
  std::vector<MambaState> state;
  for (int64_t i = 0; i < n; i++) {
    in.push_back(bench.New(Dtype::kBf16, {rows, kProjected})), xbc.push_back(bench.New(Dtype::kBf16, {rows, kShape.conv_dim()})),
        steps.push_back(bench.New(Dtype::kBf16, {rows, heads}));
    out.push_back(bench.New(Dtype::kBf16, {rows, kShape.inner()}));
    MambaState s;
    s.conv = bench.New(Dtype::kBf16, {sequences, kTaps, kShape.conv_dim()});
    s.xbc = bench.New(Dtype::kBf16, {sequences, kSsdChunk, kShape.conv_dim()}), s.dt = bench.New(Dtype::kBf16, {sequences, kSsdChunk, heads});
    s.ssm = bench.New(Dtype::kF32, {sequences, 1, heads, kShape.head_dim, kShape.state});
    state.push_back(s);
  }
  const Tensor bias = bench.Vector({heads}, [&] { return biases(random); }), a_log = bench.Vector({heads}, [&] { return logs(random); }),
               d = bench.Vector({heads}, [&] { return skips(random); }), w = bench.Vector({kShape.conv_dim(), 1, kTaps}, [&] { return skips(random); });
  // Decoding sequences stand everywhere in their chunks.
  const Batch batch = Sequences(
      sequences, rows_each, [&](int64_t i) { return one ? 1000 + 13 * i : 0; }, true);
  ops::Begin(bench.ctx, batch);
  double bytes = row_bytes * static_cast<double>(rows) + (state_bytes + ring_bytes) * static_cast<double>(sequences);
  if (one)
    for (const Sequence& s : batch.sequences) {
      const auto t = static_cast<double>(s.position % kSsdChunk);
      bytes += t * static_cast<double>(kShape.conv_dim() - kShape.state + heads) * 2 + (s.position % kSsdChunk == kSsdChunk - 1 ? state_bytes : 0);
    }
  bench.Print(fmt::format("{}, {} x {}", conv ? "ConvScan" : "SsdScan", sequences, rows_each), bytes, rows, [&](int i) {
    const auto k = static_cast<size_t>(i % n);
    if (conv)
      ops::ConvScan(bench.ctx, in[k].Columns({kShape.inner(), kShape.conv_dim()}), w, {}, steps[k], bias, a_log, d, kShape, batch, state[k], xbc[k], out[k]);
    else
      ops::SsdScan(bench.ctx, xbc[k], steps[k], bias, a_log, d, kShape, batch, state[k], out[k]);
  });
}

// `what`: norms, conv, decode, prefill, or nothing for all.
int Main(const std::string& what) {
  std::string reason;
  Accelerator* accelerator = OpenCuda(&reason);
  if (!accelerator) return fmt::print("{}\n", reason), 0;
  fmt::print("{}\n", accelerator->name());
  Bench bench(accelerator);
  const auto wanted = [&](const char* name) { return what.empty() || what == name; };
  if (wanted("norms"))
    for (int64_t rows : {1, 32, 256, 4096}) Norms(bench, rows);
  if (wanted("conv")) {
    for (int64_t sequences : {1, 32, 256}) Convolution(bench, sequences, 1);
    Convolution(bench, 1, 512), Convolution(bench, 1, 4096), Convolution(bench, 4, 4096);
  }
  if (wanted("decode"))
    for (bool conv : {false, true})
      for (int64_t sequences : {1, 2, 4, 8, 16, 32, 64, 128, 256}) Scan(bench, sequences, 1, conv);
  if (wanted("prefill")) Scan(bench, 1, 512, false), Scan(bench, 1, 4096, false), Scan(bench, 4, 4096, false), Scan(bench, 1, 32768, false);
  return 0;
}

}  // namespace
}  // namespace bamba

int main(int argc, char** argv) { return bamba::Main(argc > 1 ? argv[1] : ""); }
