#pragma once

#include <cstdint>
#include <functional>

#include "base/thread_pool.h"
#include "model/bamba.h"

namespace bamba {

// Fills a contiguous tensor (f32, bf16 or f16) with numbers drawn evenly from [low, high): a function of the seed, whatever the number of threads.
void FillRandom(ThreadPool& threads, const Tensor& tensor, uint64_t seed, float low, float high);

// Fills the weights of a model as AllocateModel gives it: numbers of a size that keeps activations near 1 and every parameter at work. For measuring speed,
// where the numbers must not be zeros; nothing to begin training with. `proceed` is told the bytes done; where it answers false the rest is left, and so is
// the answer false.
bool FillRandom(ThreadPool& threads, Model& model, uint64_t seed, const std::function<bool(int64_t done)>& proceed);

// The same for weights wherever they lie: `fill` is called for each parameter, and answers false where the rest shall be left.
bool FillRandom(Model& model, uint64_t seed, const std::function<bool(const Tensor&, uint64_t seed, float low, float high)>& fill);

}  // namespace bamba
