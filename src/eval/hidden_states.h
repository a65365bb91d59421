#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "model/bamba.h"

namespace bamba {

// The residual stream where Hugging Face reports `hidden_states`: [0] after the embedding, [i] before layer i's mixer, and last the final norm's output;
// layers() + 1 tensors [T, dim] f32.
struct HiddenStates {
  std::vector<Tensor> states;
  Tensor last;  // the last one where the model is executed: a temporary of the context
  Buffer storage;
};

// Of one sequence from the empty state, on the CPU.
HiddenStates ForwardHiddenStates(Context& ctx, const Model& model, std::span<const int32_t> tokens);

}  // namespace bamba
