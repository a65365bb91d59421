// The model's backward pass in double against the complex step of its forward and loss.
#include <gtest/gtest.h>

#include <numeric>

#include "model/bamba.h"
#include "tests/support/complex_step.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

using Complex = std::complex<double>;

// A few documents, packed, of 70 tokens in all: one crosses two chunk boundaries, some have one token, one has none.
struct Documents {
  Batch batch;
  std::vector<int32_t> labels;
  int64_t counted = 0;

  Documents(int64_t vocab, std::mt19937_64& random, const std::vector<int64_t>& lengths) {
    const auto token = [&] { return static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)); };
    for (int64_t rows : lengths) {
      batch.sequences.push_back({.row = batch.rows(), .rows = rows});
      for (int64_t i = 0; i < rows; i++) batch.tokens.push_back(token());
    }
    for (int64_t i = 0; i < batch.rows(); i++) {
      labels.push_back(random() % 5 == 0 ? ops::kIgnoredLabel : token());
      counted += labels.back() != ops::kIgnoredLabel;
    }
  }
  double scale() const { return 1 / static_cast<double>(counted); }
};

// A model whose parameters, in the order of the table, are these.
Weights WeightsOf(const Config& config, const Tensors& parameters) {
  Weights weights = EmptyWeights(config);
  const auto rows = Parameters(config, weights);
  for (size_t i = 0; i < rows.size(); i++) *rows[i].tensor = parameters[i];
  TieHead(config, weights);
  return weights;
}

template <typename T>
T MeanLoss(Context& ctx, const Config& config, const Weights& weights, const Documents& documents) {
  Frame frame(ctx);
  States states;
  Tensor hidden = ctx.Temp({documents.batch.rows(), config.dim}), nll = ctx.Temp({documents.batch.rows()});
  Forward(ctx, config, weights, documents.batch, states, hidden);
  NegativeLogLikelihood(ctx, config, weights, hidden, documents.labels, nll);
  return std::accumulate(nll.as<T>(), nll.as<T>() + nll.size(), T(0)) * documents.scale();
}

// The gradient of the mean loss by every parameter, as training computes it; returns the loss.
double Gradients(Context& ctx, const Config& config, const Weights& weights, const Documents& documents, Weights& grads) {
  Frame frame(ctx);
  States states;
  Saved saved;
  const int64_t rows = documents.batch.rows();
  Tensor hidden = ctx.Temp({rows, config.dim}), dhidden = ctx.Temp({rows, config.dim}), nll = ctx.Temp({rows});
  Forward(ctx, config, weights, documents.batch, states, hidden, &saved);
  LossBackward(ctx, config, weights, hidden, documents.labels, documents.scale(), nll, dhidden, grads);
  Backward(ctx, config, weights, documents.batch, saved, dhidden, grads);
  return std::accumulate(nll.as<double>(), nll.as<double>() + rows, 0.0) * documents.scale();
}

void CheckModel(const Config& config, const std::vector<int64_t>& lengths, uint64_t seed) {
  Validate(config, "test");
  std::mt19937_64 random(seed);
  const Documents documents(config.vocab, random, lengths);
  Model model = RandomModel(config, seed, Dtype::kF64), grads = AllocateModel(config, Dtype::kF64);
  Device device(ref::kTable, Dtype::kF64, 1, size_t{1} << 30);
  const double loss = Gradients(device.ctx, config, model.weights, documents, grads.weights);
  EXPECT_EQ(loss, MeanLoss<double>(device.ctx, config, model.weights, documents)) << "what backward keeps changes the forward";

  std::vector<Variable> variables;
  const auto values = Parameters(model.config, model.weights), gradients = Parameters(grads.config, grads.weights);
  for (size_t i = 0; i < values.size(); i++) variables.push_back({values[i].name, *values[i].tensor, *gradients[i].tensor});
  const ComplexFunction mean_loss = [&](Context& ctx, const Tensors& parameters) {
    return MeanLoss<Complex>(ctx, config, WeightsOf(config, parameters), documents);
  };
  ComplexStep(variables, mean_loss).ExpectGradients(GradientSampling(), seed);
}

constexpr BlockKind kM = BlockKind::kMamba2, kA = BlockKind::kAttention, kS = BlockKind::kSwiGlu;

// Every number of a model matters: none is a multiple of a round one, and no multiplier is 1.
Config SmallConfig(std::vector<BlockKind> blocks) {
  Config c;
  c.blocks = std::move(blocks);
  c.vocab = 29, c.dim = 10, c.ffn = 14;
  c.mamba_heads = 4, c.mamba_head_dim = 3, c.mamba_state = 5, c.mamba_groups = 2, c.d_conv = 4;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 6, c.rope_dims = 4, c.rope_theta = 100;
  return c;
}

Config WithBiases(Config c) {
  c.mamba_bias = c.conv_bias = c.attention_bias = c.mlp_bias = true;
  return c;
}

TEST(ModelBackward, Hybrid) { CheckModel(SmallConfig({kM, kS, kA, kS, kM, kS}), {70}, 1); }

TEST(ModelBackward, PackedDocuments) { CheckModel(SmallConfig({kM, kS, kA, kS}), {40, 1, 0, 1, 28}, 2); }

TEST(ModelBackward, BiasesEverywhere) { CheckModel(WithBiases(SmallConfig({kM, kS, kA, kS})), {69, 1}, 3); }

TEST(ModelBackward, NoConvolutionBias) {
  Config c = SmallConfig({kM, kS, kA, kS});
  c.conv_bias = false;
  CheckModel(c, {70}, 4);
}

TEST(ModelBackward, TiedEmbeddings) {
  Config c = SmallConfig({kM, kS, kA, kS});
  c.tied = true;
  CheckModel(c, {70}, 5);
}

TEST(ModelBackward, AllMamba) { CheckModel(SmallConfig({kM, kS, kM, kS, kM, kS}), {70}, 6); }

TEST(ModelBackward, AllAttention) { CheckModel(SmallConfig({kA, kS, kA, kS}), {70}, 7); }

TEST(ModelBackward, MixersOnly) { CheckModel(SmallConfig({kM, kM, kA}), {70}, 8); }

TEST(ModelBackward, KeyHeads) {
  for (int64_t kv_heads : {1, 4}) {
    Config c = SmallConfig({kA, kS, kM, kS});
    c.kv_heads = kv_heads;
    CheckModel(c, {70}, 9);
  }
}

TEST(ModelBackward, Groups) {
  for (int64_t groups : {1, 4}) {
    Config c = SmallConfig({kM, kS});
    c.mamba_groups = groups;
    CheckModel(c, {70}, 10);
  }
}

TEST(ModelBackward, ConvolutionWidths) {
  for (int64_t d_conv : {1, 2, 3, 5, 6}) {
    Config c = SmallConfig({kM, kS});
    c.d_conv = d_conv;
    CheckModel(c, {67, 3}, 11);
  }
}

TEST(ModelBackward, Rotation) {
  for (int64_t dims : {0, 2, 6}) {
    Config c = WithBiases(SmallConfig({kA, kS}));
    c.rope_dims = dims;
    CheckModel(c, {70}, 12);
  }
}

TEST(ModelBackward, ClampedTimeSteps) {
  Config c = SmallConfig({kM, kS, kM, kS});
  c.dt_min = 0.03, c.dt_max = 0.15;  // dt is 0.007 to 0.3 before: all three branches
  CheckModel(c, {70}, 13);
}

TEST(ModelBackward, Multipliers) {
  Config c = SmallConfig({kM, kS, kA, kS});
  c.embedding_multiplier = 1.7, c.residual_multiplier = 0.6, c.logits_multiplier = 0.4, c.attention_multiplier = 0.9;
  CheckModel(c, {70}, 14);
  c.tied = true;
  CheckModel(c, {70}, 15);
}

// More rows than the loss takes at a time.
TEST(ModelBackward, LossInPieces) { CheckModel(SmallConfig({kM, kS}), {150, 1, 120}, 16); }

TEST(ModelBackward, RandomShapes) {
  std::mt19937_64 random(17);
  const auto between = [&](int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); };
  for (int trial = 0; trial < (FullTests() ? 40 : 4); trial++) {
    Config c;
    for (int64_t layer = between(1, 3); layer > 0; layer--) {
      c.blocks.push_back(between(0, 2) == 0 ? kA : kM);
      c.blocks.push_back(kS);
    }
    c.vocab = between(2, 40), c.dim = between(1, 16), c.ffn = between(1, 20), c.eps = between(0, 1) ? 1e-5 : 1e-2;
    c.mamba_groups = between(1, 3), c.mamba_heads = c.mamba_groups * between(1, 3), c.mamba_head_dim = between(1, 5), c.mamba_state = between(1, 7);
    c.d_conv = between(1, 6), c.conv_bias = between(0, 1), c.mamba_bias = between(0, 1), c.attention_bias = between(0, 1), c.mlp_bias = between(0, 1);
    c.kv_heads = between(1, 3), c.heads = c.kv_heads * between(1, 3), c.head_dim = between(1, 8), c.rope_dims = 2 * between(0, c.head_dim / 2);
    c.tied = between(0, 1);
    if (between(0, 1)) c.dt_min = 0.02, c.dt_max = 0.2;
    if (between(0, 1)) c.embedding_multiplier = 3, c.residual_multiplier = 0.3, c.logits_multiplier = 0.5, c.attention_multiplier = 0.7;
    const int64_t first = between(33, 69);
    SCOPED_TRACE("trial " + std::to_string(trial));
    CheckModel(c, {first, 1, 69 - first}, 100 + static_cast<uint64_t>(trial));
  }
}

}  // namespace
}  // namespace bamba
