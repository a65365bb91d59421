#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace bamba {
namespace {

// Sums over scored tokens.
struct Sums {
  double nll = 0, nll_squared = 0;
  int64_t bytes = 0, tokens = 0, windows = 0;

  PerplexityResult Result() const {
    const double n = static_cast<double>(tokens), mean = nll / n;
    const double variance = tokens > 1 ? std::max(0.0, (nll_squared - n * mean * mean) / (n - 1)) : 0;
    const double perplexity = std::exp(mean);
    return {.nll_per_token = mean,
            .perplexity = perplexity,
            .perplexity_se = perplexity * std::sqrt(variance / n),
            .bits_per_byte = bytes > 0 ? nll / std::numbers::ln2 / static_cast<double>(bytes) : 0,
            .tokens = tokens,
            .windows = windows};
  }
};

}  // namespace

int64_t WindowCount(int64_t tokens, const PerplexityOptions& o) {
  if (tokens < 2) return 0;
  const int64_t count = tokens < o.window + 1 ? 1 : (tokens - 1 - o.window) / o.stride + 1;
  return o.max_windows > 0 ? std::min(count, o.max_windows) : count;
}

void ScoreTokens(Context& ctx, const Model& model, std::span<const int32_t> tokens, int64_t first, const Tensor& nll) {
  Frame frame(ctx);
  const auto read = tokens.first(tokens.size() - 1);
  States stateless;
  Tensor hidden = ctx.Temp({static_cast<int64_t>(read.size()), model.config.dim});
  Forward(ctx, model.config, model.weights, StatelessBatch({read.begin(), read.end()}), stateless, hidden);
  NegativeLogLikelihood(ctx, model.config, model.weights, hidden.Rows(first, hidden.rows() - first), tokens.subspan(static_cast<size_t>(first) + 1), nll);
}

PerplexityResult Perplexity(Context& ctx, const Model& model, std::span<const int32_t> tokens, std::span<const int32_t> bytes, const PerplexityOptions& o,
                            const std::function<bool(const PerplexityResult&)>& report) {
  CHECK(tokens.size() == bytes.size() && o.window >= 1 && o.stride >= 1 && o.stride <= o.window);
  const int64_t windows = WindowCount(static_cast<int64_t>(tokens.size()), o);
  if (windows == 0) throw Error("the text has {} tokens; expected at least 2, one to read and one to predict", tokens.size());
  const int64_t length = std::min(o.window, static_cast<int64_t>(tokens.size()) - 1);
  Sums sums;
  for (int64_t k = 0; k < windows; k++) {
    Frame frame(ctx);
    const size_t begin = static_cast<size_t>(k * o.stride);
    const int64_t first = k == 0 ? 0 : length - o.stride;  // earlier ones were scored by the window before
    Tensor nll = ctx.WideTemp({length - first});
    ScoreTokens(ctx, model, tokens.subspan(begin, static_cast<size_t>(length) + 1), first, nll);
    std::vector<float> numbers(static_cast<size_t>(length - first));
    ops::ToHost(ctx, nll, numbers.data());
    for (int64_t i = first; i < length; i++) {
      const double x = static_cast<double>(numbers[static_cast<size_t>(i - first)]);
      const size_t token = begin + 1 + static_cast<size_t>(i);
      if (!std::isfinite(x))
        throw Error("token {} of the text has a negative log likelihood of {}; `bamba verify` names weights that are not finite", token, x);
      sums.nll += x, sums.nll_squared += x * x, sums.bytes += bytes[token];
    }
    sums.tokens += length - first, sums.windows++;
    if (!report(sums.Result())) break;
  }
  return sums.Result();
}

}  // namespace bamba
