// The arithmetic in which models are run, beside double precision: the distributions of the next token.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/mapped_file.h"
#include "io/checkpoint.h"
#include "tests/support/device.h"
#include "tests/support/simd_levels.h"
#include "text/tokenizer.h"

namespace bamba {
namespace {

constexpr int64_t kWindow = 128;

std::vector<double> LogProbabilities(const double* logits, int64_t n) {
  const double top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += std::exp(logits[i] - top);
  std::vector<double> out(logits, logits + n);
  for (double& x : out) x -= top + std::log(sum);
  return out;
}

// Logits of a window at the device's precision, as doubles.
std::vector<double> WindowLogits(Device& device, const Model& model, const std::vector<int32_t>& tokens) {
  Frame frame(device.ctx);
  States none;
  Tensor hidden = device.ctx.Temp({kWindow, model.config.dim}), logits = device.ctx.Temp({kWindow, model.config.vocab});
  Forward(device.ctx, model.config, model.weights, StatelessBatch(tokens), none, hidden);
  Logits(device.ctx, model.config, model.weights, hidden, logits);
  std::vector<double> out(static_cast<size_t>(logits.size()));
  Convert(logits.data(), logits.dtype(), out.data(), Dtype::kF64, out.size());
  return out;
}

// The shipped model on English text: its licence's, or 10,240 positions of a book in $BAMBA_SHARED.
TEST(Precision, FastArithmeticKeepsTheDistributions) {
  const char* shared = std::getenv("BAMBA_SHARED");
  const bool full = std::getenv("BAMBA_FULL") && shared;
  const std::string directory = BAMBA_SOURCE_DIR "/models/mini";
  const Model model = LoadModel(directory);
  const auto text = ReadFile(full ? std::string(shared) + "/data/books/Great-Expectations_1400.txt" : std::string(BAMBA_SOURCE_DIR "/LICENSE"));
  const std::vector<int32_t> tokens = Tokenizer::Load(directory).Encode(text);
  const int64_t windows = full ? 80 : 1, vocab = model.config.vocab;
  ASSERT_GE(static_cast<int64_t>(tokens.size()), windows * kWindow);
  Device ref(ref::kTable, Dtype::kF64, AvailableCores());

  struct Distance {
    double kl = 0;
    int64_t same_top = 0;
  };
  const auto levels = cpu::SimdLevels();
  std::vector<Distance> distances(levels.size());
  for (int64_t w = 0; w < windows; w++) {
    const std::vector<int32_t> window(tokens.begin() + w * kWindow, tokens.begin() + (w + 1) * kWindow);
    const std::vector<double> exact = WindowLogits(ref, model, window);
    for (size_t level = 0; level < levels.size(); level++) {
      cpu::SetSimd(levels[level]);
      Device device(cpu::kTable, Dtype::kF32, AvailableCores());
      device.ctx.precise = false;
      const std::vector<double> fast = WindowLogits(device, model, window);
      for (int64_t t = 0; t < kWindow; t++) {
        const auto p = LogProbabilities(exact.data() + t * vocab, vocab), q = LogProbabilities(fast.data() + t * vocab, vocab);
        for (size_t i = 0; i < p.size(); i++) distances[level].kl += std::exp(p[i]) * (p[i] - q[i]);
        distances[level].same_top += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
      }
    }
  }
  const auto positions = static_cast<double>(windows * kWindow);
  for (size_t level = 0; level < levels.size(); level++) {
    SCOPED_TRACE(cpu::Name(levels[level]));
    const double kl = distances[level].kl / positions, same_top = static_cast<double>(distances[level].same_top) / positions;
    RecordProperty(std::string("kl_") + cpu::Name(levels[level]), std::to_string(kl * 1e6) + "e-6");
    RecordProperty(std::string("top1_") + cpu::Name(levels[level]), std::to_string(same_top));
    EXPECT_LE(kl, 5e-5);
    EXPECT_GE(same_top, 0.99);
  }
}

}  // namespace
}  // namespace bamba
