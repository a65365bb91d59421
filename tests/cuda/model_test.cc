// The whole model on the GPU: against the goldens and the reference in double, and against itself however a text is cut into calls.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "base/mapped_file.h"
#include "engine/batch_runner.h"
#include "engine/device_model.h"
#include "engine/engine.h"
#include "eval/reference.h"
#include "eval/trials.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "model/params.h"
#include "tests/support/device.h"
#include "tests/support/gpu.h"
#include "tests/support/random_model.h"
#include "text/tokenizer.h"

namespace bamba {
namespace {

const std::string kData = BAMBA_SOURCE_DIR "/tests/data/", kMini = BAMBA_SOURCE_DIR "/models/mini";

class CudaModel : public testing::Test {
 protected:
  void SetUp() override {
    if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
  }
  static Execution On(bool precise, bool invariant = false) { return {.precise = precise, .accelerator = Gpu::Here(), .invariant = invariant}; }
};

// A shape whose ops take the paths of the real models: heads of 64 with a state of 128, attention heads of 64.
Config RealisticConfig(int layers, std::initializer_list<int> attention) {
  Config c = TinyConfig(layers, attention);
  c.vocab = 777, c.dim = 256, c.ffn = 512;
  c.mamba_heads = 8, c.mamba_head_dim = 64, c.mamba_state = 128, c.mamba_groups = 1, c.d_conv = 4;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 64, c.rope_dims = 32;
  return c;
}

TEST_F(CudaModel, F32MatchesTheGoldens) {
  for (const char* name : {"tiny-a", "tiny-b", "tiny-d"}) {
    SCOPED_TRACE(name);
    const Model host = LoadModel(kData + name);
    const Model model = ModelFor(On(true), host);
    const SafetensorsFile goldens(kData + name + "/goldens.safetensors");
    Gpu gpu(Dtype::kF32);
    const ReferenceErrors errors = CompareWithReference(gpu.ctx, model, goldens, std::nullopt);
    ASSERT_TRUE(errors.logits && errors.hidden);
    EXPECT_LE(*errors.logits, 1e-4);
    EXPECT_LE(*errors.hidden, 1e-4) << errors.worst_hidden;
    for (const GreedyReference& r : ReadGreedyReferences(goldens, host.config.vocab)) {
      const auto tokens = static_cast<int64_t>(r.prompt.size() + r.continuation.size());
      Engine engine(host, nullptr, {.name = name, .execution = On(true), .context = tokens});
      const Request request{.prompt = r.prompt, .max_tokens = std::ssize(r.continuation), .ignore_eos = true};
      EXPECT_EQ(engine.Generate(request, [](std::string_view) {}).tokens, r.continuation) << r.name;
    }
  }
}

std::vector<int32_t> Text(int64_t tokens) {
  std::vector<int32_t> ids = Tokenizer::Load(kMini).Encode(ReadFile(BAMBA_SOURCE_DIR "/LICENSE"));
  CHECK(std::ssize(ids) >= tokens);
  ids.resize(static_cast<size_t>(tokens));
  return ids;
}

std::vector<double> LogitsOf(Context& ctx, const Model& model, const std::vector<int32_t>& tokens) {
  Frame frame(ctx);
  States none;
  const auto rows = std::ssize(tokens);
  Tensor hidden = ctx.Temp({rows, model.config.dim}), logits = ctx.WideTemp({rows, model.config.vocab});
  Forward(ctx, model.config, model.weights, StatelessBatch(tokens), none, hidden);
  Logits(ctx, model.config, model.weights, hidden, logits);
  std::vector<char> numbers(logits.bytes());
  ops::ToHost(ctx, logits, numbers.data());
  std::vector<double> out(static_cast<size_t>(logits.size()));
  Convert(numbers.data(), logits.dtype(), out.data(), Dtype::kF64, out.size());
  return out;
}

double RmsError(const std::vector<double>& a, const std::vector<double>& exact) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += (a[i] - exact[i]) * (a[i] - exact[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// bf16 as it is computed naively: f32 arithmetic, and every op's output but the residual stream's rounded.
std::vector<double> NaiveBf16Logits(const Model& model, const std::vector<int32_t>& tokens) {
  Device cpu(cpu::kTable, Dtype::kF32, AvailableCores());
  cpu.ctx.observer = [&](std::string_view op, int layer, const Tensor& output) {
    if (op == "Embed" || op == "Residual" || (op == "Linear" && layer < 0)) return;
    for (int64_t t = 0; t < output.rows(); t++)
      for (int64_t i = 0; i < output.cols(); i++) output.Row<float>(t)[i] = static_cast<float>(Bf16(output.Row<float>(t)[i]));
  };
  return LogitsOf(cpu.ctx, model, tokens);
}

TEST_F(CudaModel, ErrorsOfTheShippedModelAgainstDouble) {
  const Model host = LoadModel(kMini);
  const std::vector<int32_t> tokens = Text(300);
  Device ref(ref::kTable, Dtype::kF64, AvailableCores());
  const std::vector<double> exact = LogitsOf(ref.ctx, host, tokens);
  const Model model = ModelFor(On(true), host);
  {
    Gpu gpu(Dtype::kF32);
    const std::vector<double> ours = LogitsOf(gpu.ctx, model, tokens);
    double largest = 0;
    for (size_t i = 0; i < ours.size(); i++) largest = std::max(largest, std::abs(ours[i] - exact[i]));
    EXPECT_LE(largest, 1e-4);
  }
  const double naive = RmsError(NaiveBf16Logits(host, tokens), exact);
  for (bool invariant : {false, true}) {
    Gpu gpu(Dtype::kBf16);
    gpu.ctx.invariant = invariant;
    const double ours = RmsError(LogitsOf(gpu.ctx, model, tokens), exact);
    EXPECT_LE(ours, 2 * naive) << (invariant ? "batch-invariant" : "default");
    RecordProperty(invariant ? "invariant" : "default", fmt::format("{:.3e}, naive {:.3e}", ours, naive));
    fmt::print("rms error of bf16 logits, {}: {:.3e}; naive: {:.3e}\n", invariant ? "batch-invariant" : "default", ours, naive);
  }
}

// At every moment of a text: prompts of all lengths, tokens one by one beside it, replayed steps and prompts in one batch.
void ExpectCloseToDouble(const Config& config, const std::vector<int64_t>& pieces) {
  const Model host = RandomModel(config, 3, Dtype::kBf16);
  std::mt19937_64 random(5);
  std::vector<int32_t> tokens;
  for (int64_t n : pieces)
    for (int64_t i = 0; i < n; i++) tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab)));
  Device ref(ref::kTable, Dtype::kF64, AvailableCores());
  const std::vector<double> exact = LogitsOf(ref.ctx, host, tokens);
  const double naive = RmsError(NaiveBf16Logits(host, tokens), exact);
  const Execution execution{.precise = false, .accelerator = Gpu::Here()};
  const Model model = ModelFor(execution, host);
  BatchRunner runner(model, {.slots = 2, .pages = 2 * PagesFor(std::ssize(tokens))}, {.rows = 1024, .scored = 1024}, execution);
  SequenceState sequence = runner.pool().Allocate().value(), stranger = runner.pool().Allocate().value();
  std::vector<double> ours;
  size_t at = 0;
  for (int64_t n : pieces) {
    runner.Add(sequence, std::span(tokens).subspan(at, static_cast<size_t>(n)), n);
    if (at % 2 == 1) runner.Add(stranger, std::span(tokens).first(1), 1);
    const Tensor logits = runner.Run();
    for (int64_t row = 0; row < n; row++) ours.insert(ours.end(), logits.Row<float>(row), logits.Row<float>(row) + logits.cols());
    at += static_cast<size_t>(n);
  }
  for (size_t row = 0; row < tokens.size(); row++) {
    const auto vocab = static_cast<size_t>(config.vocab);
    const std::vector<double> a(ours.begin() + row * vocab, ours.begin() + (row + 1) * vocab),
        b(exact.begin() + row * vocab, exact.begin() + (row + 1) * vocab);
    ASSERT_LE(RmsError(a, b), 6 * naive) << "row " << row;  // a single row strays further than all on average
  }
  EXPECT_LE(RmsError(ours, exact), 2 * naive);
}

TEST_F(CudaModel, Bf16TextInPiecesIsCloseToDouble) {
  std::vector<int64_t> pieces = {70, 1, 1, 1, 33, 64, 1, 5, 129, 1, 1};
  pieces.insert(pieces.end(), 70, 1);
  ExpectCloseToDouble(RealisticConfig(3, {1}), pieces);
  ExpectCloseToDouble(TinyConfig(3, {1}), pieces);
}

// Texts written side by side, as many as the products of wide matrices have a kernel of their own for, in replayed steps.
TEST_F(CudaModel, ManyTextsAtOnceAreCloseToDouble) {
  constexpr int kTexts = 100, kTokens = 4;
  Config config = RealisticConfig(2, {1});
  config.ffn = 6400, config.mamba_heads = 104;  // in_proj, gate and up are wide
  const Model host = RandomModel(config, 4, Dtype::kBf16);
  const Execution execution = On(false);
  const Model model = ModelFor(execution, host);
  BatchRunner runner(model, {.slots = kTexts, .pages = kTexts * PagesFor(kTokens)}, {.rows = 128, .scored = 128}, execution);
  std::mt19937_64 random(9);
  std::vector<std::vector<int32_t>> texts(kTexts);
  std::vector<std::vector<double>> ours(kTexts);
  std::vector<SequenceState> sequences;
  for (std::vector<int32_t>& text : texts) {
    for (int t = 0; t < kTokens; t++) text.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab)));
    sequences.push_back(runner.pool().Allocate().value());
  }
  for (int t = 0; t < kTokens; t++) {
    for (size_t i = 0; i < kTexts; i++) runner.Add(sequences[i], std::span(texts[i]).subspan(static_cast<size_t>(t), 1), 1);
    const Tensor logits = runner.Run();
    for (size_t i = 0; i < kTexts; i++) {
      const float* const row = logits.Row<float>(static_cast<int64_t>(i));
      ours[i].insert(ours[i].end(), row, row + config.vocab);
    }
  }
  Device ref(ref::kTable, Dtype::kF64, AvailableCores());
  for (size_t i = 0; i < kTexts; i += 9) {
    const std::vector<double> exact = LogitsOf(ref.ctx, host, texts[i]);
    EXPECT_LE(RmsError(ours[i], exact), 2 * RmsError(NaiveBf16Logits(host, texts[i]), exact)) << "text " << i;
  }
}

TEST_F(CudaModel, AnySplitGivesTheSameBits) {
  const char* asked = std::getenv("BAMBA_TRIALS");
  const int64_t trials = asked ? std::atoll(asked) : 60;
  for (const Config& config : {TinyConfig(3, {1}), RealisticConfig(3, {1})}) {
    for (bool precise : {true, false}) {
      const Model model = RandomModel(config, 1, Dtype::kBf16);
      const TrialReport report = RunTrials(model, {.trials = trials, .seed = 7, .execution = On(precise, !precise), .name = "m"}, [](const TrialReport&) {});
      EXPECT_EQ(report.differing_bits, 0) << (precise ? "f32" : "bf16, batch-invariant") << ": " << report.first;
    }
  }
}

TEST_F(CudaModel, TheSameTokensFromRunToRun) {
  const Model model = RandomModel(RealisticConfig(4, {2}), 1, Dtype::kBf16);
  std::vector<std::vector<int32_t>> first;
  for (int run = 0; run < 3; run++) {
    Engine engine(model, nullptr, {.name = "m", .execution = On(false), .context = 400, .sequences = 5});
    std::vector<std::vector<int32_t>> texts(5);
    for (size_t i = 0; i < texts.size(); i++)
      engine.Submit({.prompt = std::vector<int32_t>(20 * i + 1, static_cast<int32_t>(i)), .max_tokens = 100, .ignore_eos = true},
                    {.done = [&texts, i](int, Generation&& g) { texts[i] = g.tokens; }});
    while (engine.Step()) {
    }
    if (run == 0) first = texts;
    EXPECT_EQ(texts, first);
  }
}

// The device's own choice is the sampler's.
TEST_F(CudaModel, TheDeviceChoosesAsTheHostDoes) {
  const Model model = RandomModel(RealisticConfig(2, {1}), 1);
  const auto texts = [&](Execution execution, const Sampling& sampling) {
    Engine engine(model, nullptr, {.name = "m", .execution = execution, .context = 200});
    return engine.Generate({.prompt = {1, 2, 3}, .max_tokens = 100, .sampling = sampling, .ignore_eos = true}, [](std::string_view) {}).tokens;
  };
  for (double temperature : {0.0, 0.9}) {
    const Sampling sampling{.temperature = temperature, .seed = 3};
    EXPECT_EQ(texts(On(true), sampling), texts({}, sampling)) << "temperature " << temperature;
  }
}

TEST_F(CudaModel, MemoryIsWhatThePlanSays) {
  const Model model = RandomModel(RealisticConfig(4, {2}), 1, Dtype::kBf16);
  const EngineOptions options{.name = "m", .execution = On(false), .context = 100'000, .sequences = 200};
  const int64_t before = Gpu::Here()->FreeBytes();
  Engine engine(model, nullptr, options);
  const auto taken = static_cast<double>(before - Gpu::Here()->FreeBytes());
  const auto plan = static_cast<double>(engine.plan().total() - engine.plan().shared);
  EXPECT_NEAR(taken, plan, 0.01 * plan + (4 << 20));  // the driver gives memory in pieces of 2 MiB
}

// A long text of a model without attention: the state is the CPU's.
TEST_F(CudaModel, TheStateAfterManyTokens) {
  const char* full = std::getenv("BAMBA_FULL");
  const int64_t tokens = full ? 1'000'000 : 40'000;
  const Model host = RandomModel(TinyConfig(2, {}), 1);
  std::vector<std::vector<char>> images;
  for (const Execution& execution : {Execution{.threads = AvailableCores()}, On(true)}) {
    const Model model = ModelFor(execution, host);
    BatchRunner runner(model, {.slots = 1}, {.rows = 4096, .scored = 1}, execution);
    SequenceState sequence = runner.pool().Allocate().value();
    std::mt19937_64 random(1);
    for (int64_t done = 0; done < tokens;) {
      std::vector<int32_t> piece(static_cast<size_t>(std::min<int64_t>(4096, tokens - done)));
      for (int32_t& id : piece) id = static_cast<int32_t>(random() % static_cast<uint64_t>(host.config.vocab));
      runner.Add(sequence, piece, 0);
      runner.Run();
      done += std::ssize(piece);
    }
    auto& image = images.emplace_back();
    runner.pool().Save(sequence, sequence.position, [&](const void* data, size_t bytes) {
      image.insert(image.end(), static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
    });
  }
  ASSERT_EQ(images[0].size(), images[1].size());
  const float *a = reinterpret_cast<const float*>(images[0].data()), *b = reinterpret_cast<const float*>(images[1].data());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < images[0].size() / sizeof(float); i++) difference += std::pow(a[i] - b[i], 2), norm += std::pow(a[i], 2);
  EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm));
}

}  // namespace
}  // namespace bamba
