// Writes a model of random weights, for measuring how a checkpoint of some size loads: random_checkpoint SHAPE DTYPE DIRECTORY
// (a shape that `bamba bench --config` knows; f32, bf16 or f16).
#include <cstdio>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "io/checkpoint.h"
#include "io/named_config.h"
#include "model/params.h"
#include "model/random_weights.h"

int main(int argc, char** argv) {
  using namespace bamba;
  try {
    if (argc != 4) throw UsageError("usage: {} SHAPE f32|bf16|f16 DIRECTORY", argv[0]);
    const auto config = NamedConfig(argv[1]);
    if (!config) throw UsageError("{}: is no shape that has a name", argv[1]);
    const std::string dtype = argv[2];
    if (dtype != "f32" && dtype != "bf16" && dtype != "f16") throw UsageError("{}: is neither f32 nor bf16 nor f16", dtype);
    Model model = AllocateModel(*config, dtype == "f32" ? Dtype::kF32 : dtype == "f16" ? Dtype::kF16 : Dtype::kBf16);
    ThreadPool threads(AvailableCores());
    FillRandom(threads, model, 1, [](int64_t) { return true; });
    SaveModel(model, argv[3], {.replace = true});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "random_checkpoint: %s\n", error.what());
    return 1;
  }
}
