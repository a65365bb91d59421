#pragma once

#include <cstdint>
#include <functional>

#include "engine/runtime.h"
#include "model/bamba.h"

namespace bamba {

// For a model of f32 matrices whose every number bf16 holds as well, as training in bf16 and saving in f32 leaves them: takes them into memory as bf16, which
// is half to keep and half to read for each token, and lets go of the file's pages. With `execution.precise`, which it sets, products compute the same bits;
// `execution.held` counts the bytes that it took. All matrices or none: the model stays as it is where a number is no bf16, a matrix no f32, `room` bytes are
// too few, or on an accelerator. Its matrices must lie in files. `progress` is told the bytes of them that were read. Returns whether it did.
bool HoldAsBf16(Model& model, Execution& execution, int64_t room, const std::function<void(int64_t done, int64_t of)>& progress = {});

// The bytes that it would take, by the first numbers of each matrix; 0 where they show that it wouldn't.
int64_t BytesAsBf16(const Model& model, const Execution& execution);

}  // namespace bamba
