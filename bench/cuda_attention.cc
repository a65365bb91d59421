// Times of the GPU's attention, rotary embedding, SwiGLU, embedding and choice of tokens at the shapes of Bamba-9B in bf16.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

constexpr double kBytesPerSecond = 4.6e12, kFlops = 790e12;
constexpr AttentionShape kShape = {.heads = 32, .kv_heads = 8, .head_dim = 128, .scale = 0.08838834764831845};
constexpr int64_t kQ = 4096, kKv = 1024, kVocab = 128256, kFfn = 14336, kDim = 4096;

class Bench {
 public:
  Bench() : accelerator_(OpenCuda(&reason_)), threads_(1), workspace_(size_t{6} << 30, Require()) {
    ctx_.device = &accelerator_->ops(), ctx_.accelerator = accelerator_, ctx_.dtype = Dtype::kBf16, ctx_.threads = &threads_, ctx_.workspace = &workspace_;
    ctx_.precise = false;
  }

  void All() {
    fmt::print("{}\n", accelerator_->name());
    for (const auto& [sequences, context] :
         {std::pair<int64_t, int64_t>{1, 2048}, {8, 2048}, {24, 2048}, {32, 2048}, {64, 2048}, {128, 2048}, {256, 2048}, {1, 32768}}) {
      Decode(sequences, context, false);
      Decode(sequences, context, true);
    }
    for (const auto& [rows, position] : {std::pair<int64_t, int64_t>{512, 0}, {4096, 0}, {32768, 0}, {512, 16384}}) Prefill(rows, position);
    for (int64_t rows : {1, 64, 4096}) SwiGluOf(rows);
    for (int64_t rows : {1, 64, 4096}) EmbedOf(rows);
    for (int64_t rows : {1, 64, 4096}) RopeOf(rows);
    for (int64_t rows : {1, 8, 64, 256}) ArgMaxOf(rows);
    for (int64_t rows : {1, 32, 256}) BeginOf(rows);
    for (int64_t rows : {1, 8, 64, 256}) ChooseOf(rows, 0, 0.95), ChooseOf(rows, 0, 1), ChooseOf(rows, 40, 0.95), ChooseOf(rows, 0, 1, 0.9);
  }

 private:
  Accelerator* Require() {
    CHECK_MSG(accelerator_, "{}", reason_);
    return accelerator_;
  }

  Tensor Random(Dtype dtype, std::initializer_list<int64_t> shape) {
    const Tensor t = workspace_.Take(dtype, shape);
    accelerator_->FillRandom(t, seed_++, -1, 1);
    return t;
  }

  // Seconds of one of the things that `work(i)` queues, i counting up, after a warm-up.
  double Seconds(const std::function<void(int)>& work, int times = 20) {
    for (int i = 0; i < 3; i++) work(i);
    accelerator_->Wait();
    return accelerator_->Seconds([&] {
      for (int i = 0; i < times; i++) work(i);
    }) / times;
  }
  // The same as a replayed graph of several.
  double ReplayedSeconds(const std::function<void(int)>& work) {
    constexpr int kOfGraph = 8;
    const auto all = [&] {
      for (int i = 0; i < kOfGraph; i++) work(i);
    };
    const uint64_t key = 1000 + replays_++;
    for (int i = 0; i < 2; i++) accelerator_->Replay(key, all);
    accelerator_->Wait();
    return accelerator_->Seconds([&] {
      for (int i = 0; i < 5; i++) accelerator_->Replay(key, all);
    }) / (5 * kOfGraph);
  }
  void Print(const std::string& name, double seconds, double bytes, double flops) {
    fmt::print("{:44} {:9.1f} us", name, seconds * 1e6);
    if (bytes > 0) fmt::print("  {:5.1f} % of 4.6 TB/s", 100 * bytes / seconds / kBytesPerSecond);
    if (flops > 0) fmt::print("  {:6.1f} TFLOP/s, {:4.1f} %", flops / seconds * 1e-12, 100 * flops / seconds / kFlops);
    fmt::print("\n");
    std::fflush(stdout);
  }

  // Copies of what is `bytes` long, that rotating over them finds nothing in the cache.
  static int Copies(double bytes, int most = 8) { return static_cast<int>(std::clamp(150e6 / bytes, 1.0, static_cast<double>(most))); }

  // `sequences` of `rows` rows after `position` tokens each.
  void AttentionOf(const std::string& name, int64_t sequences, int64_t rows, int64_t position, bool replayed, double flops) {
    const Frame frame(ctx_);
    const int64_t keys = position + rows, pages = (keys + kKvBlock - 1) / kKvBlock, all = sequences * rows;
    const double bytes = static_cast<double>(sequences * keys) * 2 * kKv * 2;
    std::vector<KvPages> kv(static_cast<size_t>(Copies(bytes)));
    for (KvPages& one : kv)
      one = {Random(Dtype::kBf16, {sequences * pages, kKvBlock, kShape.kv_heads, kShape.head_dim}),
             Random(Dtype::kBf16, {sequences * pages, kKvBlock, kShape.kv_heads, kShape.head_dim})};
    std::vector<int32_t> table(static_cast<size_t>(sequences * pages));
    for (size_t i = 0; i < table.size(); i++) table[i] = static_cast<int32_t>(i * 7919 % table.size());
    if (table.size() % 7919 == 0)
      for (size_t i = 0; i < table.size(); i++) table[i] = static_cast<int32_t>(i);
    Batch batch;
    for (int64_t i = 0; i < sequences; i++)
      batch.sequences.push_back({.row = i * rows, .rows = rows, .position = position, .slot = static_cast<int32_t>(i), .pages = table.data() + i * pages});
    batch.tokens.assign(static_cast<size_t>(all), 0);
    const Tensor x = Random(Dtype::kBf16, {all, kQ + 2 * kKv}), y = Random(Dtype::kBf16, {all, kQ});
    ops::Begin(ctx_, batch);
    const auto work = [&](int i) {
      ops::Attention(ctx_, x.Columns({0, kQ}), x.Columns({kQ, kKv}), x.Columns({kQ + kKv, kKv}), kShape, batch, kv[static_cast<size_t>(i) % kv.size()], y);
    };
    Print(name, replayed ? ReplayedSeconds(work) : Seconds(work), flops > 0 ? 0 : bytes, flops);
  }
  void Decode(int64_t sequences, int64_t context, bool invariant) {
    ctx_.invariant = invariant;
    AttentionOf(fmt::format("Attention, {} x 1 token at {}{}", sequences, context, invariant ? ", invariant" : ""), sequences, 1, context - 1, true, 0);
    ctx_.invariant = false;
  }
  void Prefill(int64_t rows, int64_t position) {
    const double seen = static_cast<double>(rows) * (static_cast<double>(position) + static_cast<double>(rows) / 2);
    AttentionOf(fmt::format("Attention, {} tokens at {}", rows, position), 1, rows, position, false, 4.0 * 32 * 128 * seen);
  }
  void SwiGluOf(int64_t rows) {
    const Frame frame(ctx_);
    const double bytes = static_cast<double>(rows) * kFfn * 2 * 3;
    std::vector<Tensor> in, out;
    for (int i = Copies(bytes); i > 0; i--) in.push_back(Random(Dtype::kBf16, {rows, 2 * kFfn})), out.push_back(Random(Dtype::kBf16, {rows, kFfn}));
    const auto work = [&](int i) {
      const Tensor& both = in[static_cast<size_t>(i) % in.size()];
      ops::SwiGlu(ctx_, both.Columns({0, kFfn}), both.Columns({kFfn, kFfn}), out[static_cast<size_t>(i) % out.size()]);
    };
    Print(fmt::format("SwiGlu, {} rows", rows), ReplayedSeconds(work), bytes, 0);
  }
  void EmbedOf(int64_t rows) {
    const Frame frame(ctx_);
    const Tensor table = Random(Dtype::kBf16, {kVocab, kDim}), x = Random(Dtype::kF32, {rows, kDim});
    Batch batch;
    for (int64_t i = 0; i < rows; i++) batch.tokens.push_back(static_cast<int32_t>(i * 7919 % kVocab));
    batch.sequences = {{.rows = rows}};
    ops::Begin(ctx_, batch);
    Print(fmt::format("Embed, {} rows", rows), ReplayedSeconds([&](int) { ops::Embed(ctx_, batch, table, 1, x); }), static_cast<double>(rows) * kDim * 6, 0);
  }
  void RopeOf(int64_t rows) {
    const Frame frame(ctx_);
    const Tensor x = Random(Dtype::kBf16, {rows, kQ + 2 * kKv});
    Batch batch;
    batch.tokens.assign(static_cast<size_t>(rows), 0);
    batch.sequences = {{.rows = rows, .position = 1000, .slot = 0}};
    ops::Begin(ctx_, batch);
    const RopeShape shape = {.heads = 40, .head_dim = 128, .dims = 64};
    Print(fmt::format("Rope of q and k, {} rows", rows), ReplayedSeconds([&](int) { ops::Rope(ctx_, x.Columns({0, kQ + kKv}), shape, batch); }),
          static_cast<double>(rows) * 40 * 64 * 2 * 2, 0);
  }
  void ArgMaxOf(int64_t rows) {
    const Frame frame(ctx_);
    const double bytes = static_cast<double>(rows) * kVocab * 4;
    std::vector<Tensor> logits;
    for (int i = Copies(bytes); i > 0; i--) logits.push_back(Random(Dtype::kF32, {rows, kVocab}));
    auto* const tokens = static_cast<int32_t*>(Random(Dtype::kF32, {rows}).data());
    Print(fmt::format("ArgMax, {} rows", rows), ReplayedSeconds([&](int i) { accelerator_->ArgMax(logits[static_cast<size_t>(i) % logits.size()], tokens); }),
          bytes, 0);
  }
  // Logits from −8 to 8 at temperature 1.
  void ChooseOf(int64_t rows, int64_t top_k, double top_p, double typical_p = 1) {
    const Frame frame(ctx_);
    const Tensor logits = ctx_.workspace->Take(Dtype::kF32, {rows, kVocab});
    accelerator_->FillRandom(logits, 1, -8, 8);
    auto* const tokens = static_cast<int32_t*>(Random(Dtype::kF32, {rows}).data());
    Batch batch;
    batch.choices.assign(static_cast<size_t>(rows), {.temperature = 1, .top_p = top_p, .typical_p = typical_p, .uniform = 0.3, .top_k = top_k});
    ops::Begin(ctx_, batch);
    Print(fmt::format("Choose, top_k {}, top_p {}, typical_p {}, {} rows", top_k, top_p, typical_p, rows),
          ReplayedSeconds([&](int) { accelerator_->Choose(logits, tokens); }), static_cast<double>(rows) * kVocab * 4, 0);
  }

  // The host's time to send a decoding batch, and with it the device's.
  void BeginOf(int64_t rows) {
    Batch batch;
    batch.tokens.assign(static_cast<size_t>(rows), 0), batch.choices.resize(static_cast<size_t>(rows));
    const std::vector<int32_t> pages(33, 0);
    for (int64_t i = 0; i < rows; i++) batch.sequences.push_back({.row = i, .rows = 1, .position = 2048, .slot = 0, .pages = pages.data()});
    constexpr int kTimes = 500;
    const auto start = std::chrono::steady_clock::now();
    const double device = accelerator_->Seconds([&] {
      for (int i = 0; i < kTimes; i++) ops::Begin(ctx_, batch);
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print("Begin, {} sequences of 33 pages {:>20.1f} us, {:.1f} of the device\n", rows, seconds / kTimes * 1e6, device / kTimes * 1e6);
  }

  std::string reason_;
  Accelerator* accelerator_;
  ThreadPool threads_;
  Workspace workspace_;
  Context ctx_;
  uint64_t seed_ = 1, replays_ = 0;
};

}  // namespace
}  // namespace bamba

int main() { bamba::Bench().All(); }
