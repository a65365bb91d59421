#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/bamba.h"

namespace bamba {

// Token ids of a file: input_ids [B, T] or [T], I64 or I32. Throws Error naming the file where they are absent, of another shape, or no tokens of the model.
std::vector<std::vector<int32_t>> ReadTokenRows(const SafetensorsFile& file, std::string_view name, int64_t vocab);

// What another implementation computed on the same weights, and how far this one is from it. Absent parts stay empty.
struct ReferenceErrors {
  std::optional<double> logits;  // largest absolute difference
  std::optional<double> hidden;  // likewise, over all hidden.i
  std::string worst_hidden;
  std::optional<double> loss, reference_loss;  // mean cross-entropy over the labels that aren't ignored
  std::optional<double> gradient;              // largest ‖g − g_ref‖ / ‖g_ref‖ over the parameters (‖g − g_ref‖ where the reference is zero)
  std::string worst_gradient;
  std::vector<std::string> missing_gradients;  // parameters of the model that the reference has no gradient of, if it has any
  int64_t gradients = 0;
};

// A forward and backward pass of one sequence: what CompareWithReference takes of the workspace per row. Adds scale · gradients to `gradients` (none where its
// tensors are absent); nll [T].
void ForwardBackward(Context& ctx, const Model& model, const std::vector<int32_t>& tokens, std::span<const int32_t> labels, double scale, const Tensor& nll,
                     Weights& gradients);

// Runs the model on `file`'s input_ids and compares with its logits [B, T, V], hidden.i [B, T, D], labels [B, T] and grad.NAME. The reference's loss isn't in
// the file: the caller gives it where known. `ctx` needs room for a forward and backward pass of the longest row.
// Takes the temporaries of CompareWithReference for rows like these: for MeasureWorkspace.
void MeasureComparison(Context& ctx, const Model& model, const std::vector<int32_t>& tokens);

ReferenceErrors CompareWithReference(Context& ctx, const Model& model, const SafetensorsFile& file, std::optional<double> reference_loss);

// Continuations that the reference holds: a prompt and the tokens it was continued with, greedily.
struct GreedyReference {
  std::string name;
  std::vector<int32_t> prompt, continuation;
};
std::vector<GreedyReference> ReadGreedyReferences(const SafetensorsFile& file, int64_t vocab);

}  // namespace bamba
