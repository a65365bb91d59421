#pragma once

#include <cstdint>
#include <functional>

#include "engine/runtime.h"
#include "model/bamba.h"

namespace bamba {

// Bytes that the weights of a model take on an accelerator, where vectors are f32.
int64_t DeviceWeightBytes(const Model& model);

// The model with its weights on an accelerator: matrices that are multiplied with the same rows (q, k, v; gate, up) lie one right after the other, which lets
// ops::Linears take them for one. Throws Error where there is no room. `progress` is told the bytes done of DeviceWeightBytes.
Model ModelOn(Accelerator& accelerator, const Model& host, const std::function<void(int64_t done)>& progress = {});

// The model where it is executed: the host's own, or one on the accelerator.
Model ModelFor(const Execution& execution, const Model& host, const std::function<void(int64_t done)>& progress = {});

// ModelOn with random numbers instead of the host's (model/random_weights.h), which are not touched.
Model RandomModelOn(Accelerator& accelerator, const Model& host, uint64_t seed);

}  // namespace bamba
