// The CPU's forward and backward against what the Hugging Face implementation computes on the tiny checkpoints, in fp32 on both sides.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/mapped_file.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/params.h"
#include "tests/support/bounds.h"
#include "tests/support/device.h"
#include "tests/support/simd_levels.h"

namespace bamba {
namespace {

std::vector<float> Numbers(const Tensor& t) { return {t.as<float>(), t.as<float>() + t.size()}; }

// The rows of a golden as one ragged batch, each followed by its labels: a position predicts the next token's label.
struct Documents {
  Batch batch;
  std::vector<int32_t> labels;
  double scale = 0;  // of the mean over labels that count

  Documents(const Tensor& ids, const Tensor& golden_labels, int64_t first, int64_t count) {
    int64_t counted = 0;
    for (int64_t i = first; i < first + count; i++) {
      batch.sequences.push_back({.row = batch.rows(), .rows = ids.cols()});
      for (int64_t t = 0; t < ids.cols(); t++) {
        batch.tokens.push_back(static_cast<int32_t>(ids.Row<int64_t>(i)[t]));
        labels.push_back(t + 1 < ids.cols() ? static_cast<int32_t>(golden_labels.Row<int64_t>(i)[t + 1]) : ops::kIgnoredLabel);
        counted += labels.back() != ops::kIgnoredLabel;
      }
    }
    scale = 1 / static_cast<double>(counted);
  }
};

struct Results {
  std::vector<std::vector<float>> hidden;  // as the goldens number them
  std::vector<float> logits;
  double loss = 0;
  Model grads;
};

Results Compute(const Model& model, const Documents& documents, int threads) {
  const Config& c = model.config;
  Device device(cpu::kTable, Dtype::kF32, threads, size_t{1} << 30);
  Context& ctx = device.ctx;
  States states;
  Saved saved;
  const int64_t rows = documents.batch.rows();
  Tensor hidden = ctx.Temp({rows, c.dim}), dhidden = ctx.Temp({rows, c.dim}), nll = ctx.Temp({rows}), logits = ctx.Temp({rows, c.vocab});
  Results results{.grads = AllocateModel(c, Dtype::kF32)};
  Forward(ctx, c, model.weights, documents.batch, states, hidden, &saved);
  Logits(ctx, c, model.weights, hidden, logits);
  LossBackward(ctx, c, model.weights, hidden, documents.labels, documents.scale, nll, dhidden, results.grads.weights);
  Backward(ctx, c, model.weights, documents.batch, saved, dhidden, results.grads.weights);
  for (size_t layer = 0; layer < saved.blocks.size(); layer += 2) results.hidden.push_back(Numbers(saved.blocks[layer].x));
  results.hidden.push_back(Numbers(hidden));
  results.logits = Numbers(logits);
  results.loss = std::accumulate(nll.as<float>(), nll.as<float>() + rows, 0.0) * documents.scale;
  return results;
}

class GoldenGradientsTest : public testing::TestWithParam<const char*> {
 protected:
  const std::string directory_ = std::string(BAMBA_SOURCE_DIR "/tests/data/") + GetParam();
  const Model model_ = LoadModel(directory_);
  const SafetensorsFile goldens_{directory_ + "/goldens.safetensors"};
  const Tensor ids_ = goldens_.Get("input_ids", Dtype::kI64), labels_ = goldens_.Get("labels", Dtype::kI64);
  const Documents both_{ids_, labels_, 0, 2};

  double LargestDifference(const std::vector<float>& numbers, const std::string& golden) const {
    const std::vector<float> due = Numbers(goldens_.Get(golden, Dtype::kF32));
    EXPECT_EQ(numbers.size(), due.size()) << golden;
    double largest = 0;
    for (size_t i = 0; i < std::min(numbers.size(), due.size()); i++) {
      const double difference = std::abs(static_cast<double>(numbers[i]) - due[i]);
      if (!(difference <= largest)) largest = difference;
    }
    return largest;
  }
};

TEST_P(GoldenGradientsTest, LossAndGradients) {
  const json::value scalars = ParseJson(ReadFile(directory_ + "/goldens.json"), "goldens.json");
  AtEverySimdLevel([&] {
    Results got = Compute(model_, both_, 2);
    EXPECT_LE(LargestDifference(got.logits, "logits"), kGoldenActivations);
    for (size_t i = 0; i < got.hidden.size(); i++)
      EXPECT_LE(LargestDifference(got.hidden[i], "hidden." + std::to_string(i)), kGoldenActivations) << "hidden." << i;
    EXPECT_NEAR(got.loss, scalars.at("loss").as_double(), kGoldenLoss);
    const std::vector<Param> params = Parameters(got.grads.config, got.grads.weights);
    EXPECT_EQ(static_cast<size_t>(std::ranges::count_if(goldens_.tensors(), [](const StoredTensor& t) { return t.name.starts_with("grad."); })), params.size());
    for (const Param& p : params) {
      const std::vector<float> gradient = Numbers(*p.tensor), due = Numbers(goldens_.Get("grad." + p.name, Dtype::kF32));
      ASSERT_EQ(gradient.size(), due.size()) << p.name;
      double difference = 0, norm = 0;
      for (size_t i = 0; i < due.size(); i++)
        difference += std::pow(static_cast<double>(gradient[i]) - due[i], 2), norm += std::pow(static_cast<double>(due[i]), 2);
      EXPECT_LE(std::sqrt(difference), kGoldenGradients * std::sqrt(norm)) << p.name;
    }
  });
}

TEST_P(GoldenGradientsTest, TheNumberOfThreadsChangesNoBit) {
  Results one = Compute(model_, both_, 1);
  for (int threads : {2, 3}) {
    Results more = Compute(model_, both_, threads);
    EXPECT_EQ(one.hidden, more.hidden) << threads << " threads";
    EXPECT_EQ(one.loss, more.loss) << threads << " threads";
    const auto params = Parameters(one.grads.config, one.grads.weights), others = Parameters(more.grads.config, more.grads.weights);
    for (size_t i = 0; i < params.size(); i++)
      EXPECT_EQ(Numbers(*params[i].tensor), Numbers(*others[i].tensor)) << params[i].name << ", " << threads << " threads";
  }
}

TEST_P(GoldenGradientsTest, RowsDoNotSeeTheirNeighbours) {
  const Results both = Compute(model_, both_, 2);
  for (int64_t row = 0; row < 2; row++) {
    const Results single = Compute(model_, Documents(ids_, labels_, row, 1), 2);
    const auto expect_half = [&](const std::vector<float>& all, const std::vector<float>& half) {
      ASSERT_EQ(all.size(), 2 * half.size());
      EXPECT_TRUE(std::equal(half.begin(), half.end(), all.begin() + row * std::ssize(half))) << "row " << row;
    };
    expect_half(both.logits, single.logits);
    for (size_t i = 0; i < both.hidden.size(); i++) expect_half(both.hidden[i], single.hidden[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, GoldenGradientsTest, testing::Values("tiny-a", "tiny-b", "tiny-d"),
                         [](const auto& info) { return std::string(info.param).substr(5); });

}  // namespace
}  // namespace bamba
