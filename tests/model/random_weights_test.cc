#include "model/random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "model/params.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

TEST(RandomWeights, AreDrawnEvenlyBetweenTheirBounds) {
  ThreadPool threads(2);
  std::vector<float> numbers(1'000'003);
  FillRandom(threads, Tensor(numbers.data(), Dtype::kF32, {static_cast<int64_t>(numbers.size())}), 7, -3, 1);
  double sum = 0, squares = 0, neighbours = 0;
  for (size_t i = 0; i < numbers.size(); i++) {
    ASSERT_TRUE(numbers[i] >= -3 && numbers[i] <= 1) << i;
    const double x = numbers[i] + 1;
    sum += x, squares += x * x;
    if (i > 0) neighbours += x * (numbers[i - 1] + 1);
  }
  // Means of n independent numbers of variance v differ from their expectation by less than 5 √(v/n), but for one seed in two million. Variances of x, x² and
  // a product of two for even numbers of [−2, 2]: 4/3, 64/45, 16/9.
  const auto n = static_cast<double>(numbers.size());
  EXPECT_LT(std::abs(sum / n), 5 * std::sqrt(4.0 / 3 / n));
  EXPECT_LT(std::abs(squares / n - 4.0 / 3), 5 * std::sqrt(64.0 / 45 / n));
  EXPECT_LT(std::abs(neighbours / n), 5 * std::sqrt(16.0 / 9 / n));
}

TEST(RandomWeights, DependOnTheSeedAloneAndFillEveryTensor) {
  ThreadPool one(1), three(3);
  Config config = TinyConfig(3, {1});
  config.vocab = 20'000;  // so that a tensor is drawn in several pieces
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    Model a = AllocateModel(config, dtype), b = AllocateModel(config, dtype), other = AllocateModel(config, dtype);
    int64_t bytes = 0;
    const auto go_on = [&](int64_t done) { return bytes = done, true; };
    EXPECT_TRUE(FillRandom(one, a, 1, go_on) && FillRandom(three, b, 1, go_on) && FillRandom(three, other, 2, go_on));
    EXPECT_EQ(bytes, ParameterCount(config) * static_cast<int64_t>(SizeOf(dtype)));
    const auto ours = Parameters(config, a.weights), same = Parameters(config, b.weights), different = Parameters(config, other.weights);
    for (size_t i = 0; i < ours.size(); i++) {
      EXPECT_EQ(std::memcmp(ours[i].tensor->data(), same[i].tensor->data(), ours[i].tensor->bytes()), 0) << ours[i].name;
      EXPECT_NE(std::memcmp(ours[i].tensor->data(), different[i].tensor->data(), ours[i].tensor->bytes()), 0) << ours[i].name;
      std::vector<float> numbers(static_cast<size_t>(ours[i].size()));
      Convert(ours[i].tensor->data(), dtype, numbers.data(), Dtype::kF32, numbers.size());
      EXPECT_LE(std::count(numbers.begin(), numbers.end(), 0.0f), ours[i].size() / 1000) << ours[i].name;
    }
  }
}

TEST(RandomWeights, StopWhenTold) {
  ThreadPool threads(1);
  Model model = AllocateModel(TinyConfig(1, {}), Dtype::kF32);
  int calls = 0;
  EXPECT_FALSE(FillRandom(threads, model, 1, [&](int64_t) { return ++calls < 2; }));
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace bamba
