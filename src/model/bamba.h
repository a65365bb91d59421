#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/config.h"
#include "ops/ops.h"

namespace bamba {

// A Bamba model is an embedding, a list of residual sub-blocks, a final norm and a head. This page is the whole vocabulary: the weights, the state of
// sequences, what backward remembers, and the functions at the end. The numbers are in Config; the names of tensors in params.cc.

struct Mamba2 {
  LinearWeight in_proj, out_proj;  // in_proj rows: z | x B C | dt
  Tensor conv, conv_bias;          // [conv_dim, 1, d_conv], [conv_dim] or absent
  Tensor dt_bias, a_log, d;        // [heads]
  Tensor norm;                     // [inner]
};
struct Attention {
  LinearWeight q, k, v, o;
};
struct SwiGlu {
  LinearWeight gate, up, down;
};

// x ← x + residual_multiplier · kind(norm(x)); the members of the other kinds stay empty.
struct SubBlock {
  BlockKind kind;
  Tensor norm;  // [dim]
  Mamba2 mamba;
  Attention attention;
  SwiGlu mlp;
};

struct Weights {
  LinearWeight embedding;  // [vocab, dim]
  std::vector<SubBlock> blocks;
  Tensor final_norm;  // [dim]
  LinearWeight head;  // [vocab, dim]; the embedding's own memory where tied
};

// A loaded model: the weights are views into `storage` (mapped files, buffers), which they keep alive.
struct Model {
  Config config;
  Weights weights;
  std::vector<std::shared_ptr<const void>> storage;
  std::optional<Dtype> stored;  // of matrices in their file, where they are held in a narrower one (engine/narrow.h)
};

// State of sequences, one entry per sub-block (those of other kinds stay empty). No entries: every sequence is stateless.
struct States {
  std::vector<MambaState> mamba;
  std::vector<KvPages> kv;
};

// What Backward needs of a forward pass: views into the Context's workspace, kept there until an outer Frame ends. Which members a sub-block fills
// follows from its kind, in the order of forward.cc.
struct SavedBlock {
  Tensor x, u;                    // residual stream before the sub-block [T, dim], and its norm
  Tensor proj, xbc, scan, gated;  // Mamba-2
  Tensor q, k, v, mix;            // attention; q and k after rotation
  Tensor gate, up, act;           // SwiGLU
};
struct Saved {
  std::vector<SavedBlock> blocks;
  Tensor x;  // residual stream before the final norm
};

// The index of the block after which a row matters to no other one.
size_t LastMixer(const Weights& w);

// Runs the tokens of `batch` through the model. Slots and pages named in the batch are read and advanced.
// hidden [T, dim]: the final norm's output, row t for token t, or [wanted.size(), dim] for the batch's wanted rows; of other rows nothing need be computed that
// no later token sees, which is what the last mixer doesn't mix and all behind it. With `saved`, which wants all rows, keeps what Backward needs; then no
// sequence may carry state in.
void Forward(Context& ctx, const Config& c, const Weights& w, const Batch& batch, States& states, const Tensor& hidden, Saved* saved = nullptr);

// Adds the gradients of all parameters to `grads` (the tensors of `w` in f32; absent ones are not computed), given that of `hidden`.
void Backward(Context& ctx, const Config& c, const Weights& w, const Batch& batch, const Saved& saved, const Tensor& dhidden, Weights& grads);

// logits [R, vocab] = logits_multiplier · head(hidden [R, dim]); any rows, so that a prompt pays for its last one only.
void Logits(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, const Tensor& logits);

// nll [T]: −log p(labels[t]) at row t (0 where the label is kIgnoredLabel), some rows' logits at a time.
void NegativeLogLikelihood(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, std::span<const int32_t> labels, const Tensor& nll);

// The same, and the gradient of scale · Σ nll: dhidden is written, the head's gradient added to `grads`.
void LossBackward(Context& ctx, const Config& c, const Weights& w, const Tensor& hidden, std::span<const int32_t> labels, double scale, const Tensor& nll,
                  const Tensor& dhidden, Weights& grads);

}  // namespace bamba
