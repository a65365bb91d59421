// The model on the reference device, in double, against what others computed on the same weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <sstream>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

const std::string kData = BAMBA_SOURCE_DIR "/tests/data/";

std::vector<int32_t> Ids(const Tensor& t) { return {t.as<int64_t>(), t.as<int64_t>() + t.size()}; }

double LargestError(const Tensor& ours, const Tensor& golden) {
  CHECK_EQ(ours.size(), golden.size());
  std::vector<double> values(static_cast<size_t>(golden.size()));
  Convert(golden.data(), golden.dtype(), values.data(), Dtype::kF64, values.size());
  double error = 0;
  for (int64_t i = 0; i < ours.size(); i++) {
    const double difference = std::abs(ours.as<double>()[i] - values[static_cast<size_t>(i)]);
    if (!(difference <= error)) error = difference;  // a NaN stays
  }
  return error;
}

// A model, its weights in double, and its outputs for one sequence.
struct Reference {
  Device device{ref::kTable, Dtype::kF64};
  Model loaded, model;
  explicit Reference(const std::string& name) : loaded(LoadModel(kData + name)), model(ConvertModel(loaded, Dtype::kF64)) {}

  const Config& config() const { return model.config; }
  Tensor Hidden(const Batch& batch) {
    States states;
    Tensor hidden = device.ctx.Temp({batch.rows(), config().dim});
    Forward(device.ctx, config(), model.weights, batch, states, hidden);
    return hidden;
  }
  Tensor LogitsOf(const Tensor& hidden) {
    Tensor logits = device.ctx.Temp({hidden.rows(), config().vocab});
    Logits(device.ctx, config(), model.weights, hidden, logits);
    return logits;
  }
};

class GoldenTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::Values("tiny-a", "tiny-b", "tiny-d"), [](const auto& info) { return std::string(1, info.param[5]); });

TEST_P(GoldenTest, HiddenStatesAndLogits) {
  Reference reference(GetParam());
  SafetensorsFile goldens(kData + GetParam() + "/goldens.safetensors");
  const Tensor ids = goldens.Get("input_ids", Dtype::kI64);
  for (int64_t row = 0; row < ids.rows(); row++) {
    int checked = 0;
    const auto expect_hidden = [&](int64_t i, const Tensor& ours) {
      EXPECT_LE(LargestError(ours, goldens.Get("hidden." + std::to_string(i), Dtype::kF32).At(row)), kGoldenActivations) << "hidden." << i << " of row " << row;
      checked++;
    };
    // hidden.i: the residual stream after i layers; the last one after the final norm.
    const int64_t layers = reference.config().layers();
    reference.device.ctx.observer = [&](std::string_view op, int block, const Tensor& output) {
      if (op == "Embed") expect_hidden(0, output);
      if (op == "Residual" && block % 2 == 1 && block / 2 + 1 < layers) expect_hidden(block / 2 + 1, output);
    };
    const Tensor hidden = reference.Hidden(StatelessBatch(Ids(ids.At(row))));
    reference.device.ctx.observer = nullptr;
    expect_hidden(layers, hidden);
    EXPECT_EQ(checked, layers + 1);
    EXPECT_LE(LargestError(reference.LogitsOf(hidden), goldens.Get("logits", Dtype::kF32).At(row)), kGoldenActivations) << "row " << row;
  }
}

// Their loss is the mean over both rows' next tokens.
TEST_P(GoldenTest, LossAndGradients) {
  Reference reference(GetParam());
  SafetensorsFile goldens(kData + GetParam() + "/goldens.safetensors");
  const Tensor ids = goldens.Get("input_ids", Dtype::kI64), golden_labels = goldens.Get("labels", Dtype::kI64);
  Batch batch;
  std::vector<int32_t> labels;
  for (int64_t row = 0; row < ids.rows(); row++) {
    batch.sequences.push_back({.row = batch.rows(), .rows = ids.cols()});
    const std::vector<int32_t> tokens = Ids(ids.At(row)), of_row = Ids(golden_labels.At(row));
    batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
    labels.insert(labels.end(), of_row.begin() + 1, of_row.end());
    labels.push_back(ops::kIgnoredLabel);
  }
  const double scale = 1.0 / static_cast<double>(std::count_if(labels.begin(), labels.end(), [](int32_t l) { return l != ops::kIgnoredLabel; }));

  Context& ctx = reference.device.ctx;
  Model grads = AllocateModel(reference.config(), Dtype::kF64);
  States states;
  Saved saved;
  Tensor hidden = ctx.Temp({batch.rows(), reference.config().dim}), dhidden = ctx.Temp({batch.rows(), reference.config().dim}), nll = ctx.Temp({batch.rows()});
  Forward(ctx, reference.config(), reference.model.weights, batch, states, hidden, &saved);
  LossBackward(ctx, reference.config(), reference.model.weights, hidden, labels, scale, nll, dhidden, grads.weights);
  Backward(ctx, reference.config(), reference.model.weights, batch, saved, dhidden, grads.weights);

  const double loss = scale * std::accumulate(nll.as<double>(), nll.as<double>() + nll.size(), 0.0);
  std::ifstream file(kData + GetParam() + "/goldens.json");
  std::stringstream json;
  json << file.rdbuf();
  const std::string key = "\"loss\": ";
  ASSERT_NE(json.str().find(key), std::string::npos);
  EXPECT_NEAR(loss, std::stod(json.str().substr(json.str().find(key) + key.size())), kGoldenLoss);

  for (const Param& p : Parameters(grads.config, grads.weights)) {
    const float* golden = goldens.Get("grad." + p.name, Dtype::kF32).as<float>();
    const double* ours = p.tensor->as<double>();
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < p.size(); i++) difference += (ours[i] - golden[i]) * (ours[i] - golden[i]), norm += ours[i] * ours[i];
    EXPECT_LE(std::sqrt(difference), kGoldenGradients * std::sqrt(norm)) << p.name;
  }
}

TEST_P(GoldenTest, GreedyText) {
  Reference reference(GetParam());
  SafetensorsFile goldens(kData + GetParam() + "/goldens.safetensors");
  const std::vector<int32_t> expected = Ids(goldens.Get("generate.greedy", Dtype::kI64));
  // As their text continues 20 tokens of prompt greedily, each later token is the best one after those before it.
  const Tensor logits = reference.LogitsOf(reference.Hidden(StatelessBatch(expected)));
  for (size_t i = 20; i < expected.size(); i++) {
    const double* row = logits.Row<double>(static_cast<int64_t>(i) - 1);
    EXPECT_EQ(std::max_element(row, row + logits.cols()) - row, expected[i]) << "token " << i;
  }
}

// Logits in float64 of an independent model (tools/make_float64.py). Beside the tiny models: `tied` has tied embeddings, clamped time steps, as many key heads
// as heads, a convolution of 2 and another theta; `mamba` has no attention, and no convolution bias.
class Float64Test : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Float64Test, testing::Values("tiny-a", "tiny-b", "tiny-d", "float64/tied", "float64/mamba"), [](const auto& info) {
  const std::string name = info.param;
  return name.starts_with("tiny-") ? "tiny_" + name.substr(5) : name.substr(8);
});

TEST_P(Float64Test, Logits) {
  Reference reference(GetParam());
  const std::string name = GetParam(), base = name.substr(name.find('/') + 1);
  SafetensorsFile judged(kData + "float64/" + base + ".safetensors");
  const Tensor rows = judged.Get("rows", Dtype::kI64), logits = judged.Get("logits", Dtype::kF64);
  SafetensorsFile inputs(judged.Find("input_ids") ? judged.path() : kData + name + "/goldens.safetensors");
  const Tensor ids = inputs.Get("input_ids", Dtype::kI64);
  ASSERT_EQ(ids.rows(), logits.shape(0));
  for (int64_t sequence = 0; sequence < ids.rows(); sequence++) {
    const Tensor ours = reference.LogitsOf(reference.Hidden(StatelessBatch(Ids(ids.At(sequence)))));
    for (int64_t i = 0; i < rows.size(); i++)
      EXPECT_LE(LargestError(ours.At(rows.as<int64_t>()[i]), logits.At(sequence).At(i)), kDoubleBound)
          << "sequence " << sequence << ", token " << rows.as<int64_t>()[i];
  }
}

}  // namespace
}  // namespace bamba
