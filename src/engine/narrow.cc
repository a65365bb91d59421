#include "engine/narrow.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "model/params.h"

namespace bamba {
namespace {

// f32 as bf16, in their bits; whether nothing was lost.
bool Narrow(const uint32_t* from, uint16_t* to, int64_t n) {
  uint32_t any = 0;
  for (int64_t i = 0; i < n; i++) to[i] = static_cast<uint16_t>(from[i] >> 16), any |= from[i];
  return (any & 0xffff) == 0;
}

// The first numbers alone: where a model's are no bf16, this is seen in each of its matrices, and nothing was spent on it.
bool LooksNarrow(const Tensor& tensor) {
  uint16_t unused[256];
  return tensor.dtype() == Dtype::kF32 && tensor.contiguous() &&
         Narrow(static_cast<const uint32_t*>(tensor.data()), unused, std::min<int64_t>(tensor.size(), std::ssize(unused)));
}

// What a step reads of the weights as a whole; of an embedding that isn't the head it reads single rows.
std::vector<Param> MatricesOfSteps(const Config& config, Weights& weights) {
  std::vector<Param> params = Parameters(config, weights);
  std::erase_if(params, [&](const Param& p) {
    const bool looked_up = p.tensor == &weights.embedding.weight && !config.tied;
    return looked_up || (p.role != Role::kMatrix && p.role != Role::kEmbedding);
  });
  return params;
}

}  // namespace

int64_t BytesAsBf16(const Model& model, const Execution& execution) {
  Weights weights = model.weights;
  int64_t numbers = 0;
  for (const Param& p : MatricesOfSteps(model.config, weights)) {
    if (execution.accelerator || !LooksNarrow(*p.tensor)) return 0;
    numbers += p.size();
  }
  return numbers * static_cast<int64_t>(sizeof(Bf16));
}

bool HoldAsBf16(Model& model, Execution& execution, int64_t room, const std::function<void(int64_t done, int64_t of)>& progress) {
  const int64_t bytes = BytesAsBf16(model, execution);
  if (bytes == 0 || bytes > room) return false;
  const std::vector<Param> matrices = MatricesOfSteps(model.config, model.weights);
  std::shared_ptr<Workspace> memory;
  try {
    memory = std::make_shared<Workspace>(static_cast<size_t>(bytes) + matrices.size() * Workspace::kAlign);
  } catch (const Error&) {  // a limit of the process that `room` doesn't tell of
    return false;
  }
  ThreadPool threads(execution.threads);
  std::vector<Tensor> narrow;
  int64_t done = 0;
  for (const Param& p : matrices) {
    constexpr int64_t kPiece = 1 << 18, kAtATime = 64 * kPiece;  // numbers: of a thread, and between two words of progress
    const auto* const from = static_cast<const uint32_t*>(p.tensor->data());
    narrow.push_back(memory->Take(Dtype::kBf16, {p.shape[0], p.shape[1]}));
    auto* const to = static_cast<uint16_t*>(narrow.back().data());
    std::atomic<bool> exact = true;
    for (int64_t begin = 0; begin < p.size(); begin += kAtATime) {
      threads.For(std::min(kAtATime, p.size() - begin), kPiece, [&](int64_t first, int64_t end, int) {
        if (!Narrow(from + begin + first, to + begin + first, end - first)) exact = false;
      });
      if (!exact) return false;
      const int64_t now = std::min(kAtATime, p.size() - begin);
      DoneReading(from + begin, static_cast<size_t>(now) * sizeof(float));
      done += now * static_cast<int64_t>(sizeof(float));
      if (progress) progress(done, 2 * bytes);
    }
  }
  for (size_t i = 0; i < matrices.size(); i++) *matrices[i].tensor = narrow[i];
  TieHead(model.config, model.weights);
  model.storage.push_back(std::move(memory));
  model.stored = Dtype::kF32, execution.precise = true, execution.held += bytes;
  return true;
}

}  // namespace bamba
