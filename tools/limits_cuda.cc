// What this GPU can do, as `bamba bench --device cuda` measures it: read bandwidth, and the bf16 products of X[M, K] W[N, K]ᵀ that its ops get, of 8192³ and of
// each M N K given. One JSON object a line.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ops/context.h"
#include "ops/op_table.h"
#include "ops/ops.h"

namespace {

double ProductSeconds(bamba::Accelerator& accelerator, int64_t m, int64_t n, int64_t k) {
  using namespace bamba;
  ThreadPool threads(1);
  Workspace workspace(static_cast<size_t>(2 * (m * k + n * k + m * n)) + 4 * Workspace::kAlign, &accelerator);
  Context ctx{.device = &accelerator.ops(), .accelerator = &accelerator, .dtype = Dtype::kBf16, .threads = &threads, .workspace = &workspace, .precise = false};
  const Tensor x = ctx.Temp({m, k}), w = ctx.Temp({n, k}), y = ctx.Temp({m, n});
  accelerator.FillRandom(x, 1, -1, 1), accelerator.FillRandom(w, 2, -1, 1);
  const auto products = [&](int times) {
    return accelerator.Seconds([&] {
      for (int i = 0; i < times; i++) ops::Linear(ctx, x, {w, {}}, y);
    }) / times;
  };
  products(3);
  double best = products(10);
  for (int i = 0; i < 4; i++) best = std::min(best, products(10));
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  std::string reason;
  bamba::Accelerator* const accelerator = bamba::OpenCuda(&reason);
  if (!accelerator) return std::fprintf(stderr, "limits_cuda: %s\n", reason.c_str()), 1;
  constexpr double kCube = 2.0 * 8192 * 8192 * 8192;
  std::printf("{\"gpu\": \"%s\", \"read_tb_s\": %.2f, \"bf16_tflop_s\": %.0f}\n", accelerator->name().c_str(), accelerator->ReadBandwidth() * 1e-12,
              kCube / ProductSeconds(*accelerator, 8192, 8192, 8192) * 1e-12);
  for (int i = 1; i + 2 < argc; i += 3) {
    const int64_t m = std::atoll(argv[i]), n = std::atoll(argv[i + 1]), k = std::atoll(argv[i + 2]);
    const double seconds = ProductSeconds(*accelerator, m, n, k);
    std::printf("{\"m\": %ld, \"n\": %ld, \"k\": %ld, \"us\": %.1f, \"tflop_s\": %.0f}\n", static_cast<long>(m), static_cast<long>(n), static_cast<long>(k),
                seconds * 1e6, 2e-12 * static_cast<double>(m * n * k) / seconds);
  }
}
