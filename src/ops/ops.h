#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "base/tensor.h"
#include "ops/batch.h"
#include "ops/context.h"

// THE list of ops. Each is declared here, checked in ops.cc (shapes, dtypes), means what ref/ says, and runs on the Context's device.
//
// T rows of a batch; activations are matrices [T, columns] in the context's activation dtype (f32 on the CPU, f32 or bf16 on a GPU), possibly columns of a
// wider matrix; the residual stream and logits are in its wide dtype; weights and vectors are f32, bf16 or f16 as they lie in the checkpoint. Outputs must not
// overlap inputs unless the comment says so.
//
// Backward: `d_name` is the gradient of the loss by `name`. Gradients of activations are written; gradients of parameters are added to (so tied or repeated
// weights and micro-batches sum up); absent ones are not computed. All gradients are f32 (f64 on the reference device). Results never depend on the number
// of threads.
namespace bamba {

// A matrix that Linear multiplies with: y = x weightᵀ + bias.
struct LinearWeight {
  Tensor weight;  // [out, in]
  Tensor bias;    // [out] or absent
  LinearWeight Outputs(Range range) const { return {weight.Rows(range.begin, range.size), bias ? bias.Rows(range.begin, range.size) : bias}; }
};

struct SsdShape {
  int64_t heads = 0, head_dim = 0, state = 0, groups = 1;  // head h reads B and C of group h / (heads / groups)
  double dt_min = 0, dt_max = 0;                           // clamp of dt after softplus; dt_max may be infinite
  int64_t inner() const { return heads * head_dim; }
  int64_t conv_dim() const { return inner() + 2 * groups * state; }
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // query head h reads key head h / (heads / kv_heads)
  double scale = 0;                               // of q·k before the softmax
};

struct RopeShape {
  int64_t heads = 0, head_dim = 0;
  int64_t dims = 0;      // the first `dims` of each head rotate, in pairs (j, j + dims/2)
  double theta = 10000;  // pair j turns by position · theta^(−2j/dims)
};

enum class Into { kWrite, kAdd };

namespace ops {

// Tells the device the batch that the ops up to the next Begin are called with.
void Begin(Context& ctx, const Batch& batch);

// A tensor's numbers to the host, contiguous there, and from it. Waits for the device.
void ToHost(const Context& ctx, const Tensor& from, void* to);
void FromHost(const Context& ctx, const void* from, const Tensor& to);

// x [T, dim] (wide) = scale · table[token].  table [vocab, dim]
void Embed(Context& ctx, const Batch& batch, const Tensor& table, double scale, const Tensor& x);
void EmbedBackward(Context& ctx, const Batch& batch, const Tensor& dx, double scale, const Tensor& dtable);

// y [T, out] (activations or wide) = x [T, in] weightᵀ + bias. An output element is a function of its row of x and its row of the weight alone, summed over
// `in` in one fixed order: the same bits for one row and for many.
void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y);
// Several products with the same rows, in one go: y [T, Σ out] holds them side by side.
void Linears(Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y);
// dx = dy weight, written or added; dw.weight += dyᵀ x, dw.bias += column sums of dy. dx and dw may be absent.
void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw);

// y = x · rsqrt(mean(x²) + eps) · w, each row by itself.  x (wide)   w [dim]
void RmsNorm(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& y);
// dx += …: the residual stream's own gradient is there already.
void RmsNormBackward(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& dy, const Tensor& dx, const Tensor& dw);

// out = x + scale · y (out may be x itself);  u = RmsNorm(out).  x, out (wide)
void AddRmsNorm(Context& ctx, const Tensor& x, const Tensor& y, double scale, const Tensor& w, double eps, const Tensor& out, const Tensor& u);
// dout += gradient of the norm, which makes it d_x too;  dy = scale · dout.
void AddRmsNormBackward(Context& ctx, const Tensor& out, double scale, const Tensor& w, double eps, const Tensor& du, const Tensor& dout, const Tensor& dy,
                        const Tensor& dw);

// Causal depthwise convolution and SiLU: y_t = silu(bias + Σ_k w_k x_{t−d_conv+1+k}), k from 0; tokens before the sequence's first count as 0.
// x, y [T, channels]   w [channels, 1, d_conv]   bias [channels] or absent.  Earlier inputs come from state.conv, which is advanced.
void CausalConvSilu(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const MambaState& state, const Tensor& y);
void CausalConvSiluBackward(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const Tensor& dy, const Tensor& dx,
                            const Tensor& dw, const Tensor& dbias);

// Mamba-2's state space scan (Dao & Gu 2024, "Transformers are SSMs", SSD). For each head of a sequence, with dt_t = clamp(softplus(dt_t + dt_bias)) and
// a_t = exp(−dt_t exp(A_log)):
//   S_t = a_t S_{t−1} + dt_t x_t ⊗ B_t        [head_dim, state]
//   y_t = S_t C_t + D x_t
// xbc [T, x: heads·head_dim | B: groups·state | C: groups·state] after the convolution      dt [T, heads] before bias and softplus
// dt_bias, a_log, d [heads]      y [T, heads·head_dim]
// Evaluated in chunks of kSsdChunk tokens from each sequence's start, one row or many in the same order: the same bits for any split. fp32 throughout.
void SsdScan(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
             const Batch& batch, const MambaState& state, const Tensor& y);
// `initial` [sequences, heads, head_dim, state] or absent: the states that the sequences' first rows (at a chunk boundary) continued from; dinitial likewise,
// written. dxbc and ddt are written.
void SsdScanBackward(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
                     const Batch& batch, const Tensor& initial, const Tensor& dy, const Tensor& dxbc, const Tensor& ddt, const Tensor& ddt_bias,
                     const Tensor& da_log, const Tensor& dd, const Tensor& dinitial);

// xbc = CausalConvSilu(x, w, bias), y = SsdScan(xbc, dt, …). A device without backward ops may leave xbc as it is.
void ConvScan(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d,
              const SsdShape& shape, const Batch& batch, const MambaState& state, const Tensor& xbc, const Tensor& y);

// out = v · rsqrt(mean over its group of v² + eps) · w  with v = y · silu(z).  y, z, out [T, inner]   w [inner]   groups of inner/groups channels
void GatedRmsNorm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& out);
void GatedRmsNormBackward(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& dout, const Tensor& dy,
                          const Tensor& dz, const Tensor& dw);

// Rotates the heads of x [T, heads·head_dim] in place by each row's position in its sequence (rotary embedding, first `dims` of each head).
void Rope(Context& ctx, const Tensor& x, const RopeShape& shape, const Batch& batch);
// The inverse rotation, of dx in place.
void RopeBackward(Context& ctx, const Tensor& dx, const RopeShape& shape, const Batch& batch);

// Causal grouped-query attention: y_t = Σ_s softmax_s(scale q_t·k_s) v_s over s ≤ t of the sequence.  q, y [T, heads·head_dim]   k, v [T, kv_heads·head_dim]
// The rows' keys and values are first stored in the sequence's pages; earlier ones are read there. Keys are taken in blocks of kKvBlock at absolute positions,
// each with its own maximum, sum and output, combined in block order: the same bits for any split.
void Attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const KvPages& kv,
               const Tensor& y);
void AttentionBackward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const Tensor& y,
                       const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv);

// y = silu(gate) · up; y may be gate itself.
void SwiGlu(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y);
void SwiGluBackward(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup);
// gate_up = Linears(x, {gate, up}), y = SwiGlu of its two halves. A device without backward ops may leave gate_up as it is, and then rounds y alone.
void SwiGluLinears(Context& ctx, const Tensor& x, const LinearWeight& gate, const LinearWeight& up, const Tensor& gate_up, const Tensor& y);

// The first rows of x become the named ones, which ascend.  x (activations or wide)
void KeepRows(Context& ctx, std::span<const int64_t> rows, const Tensor& x);

// nll[i] = log Σ_j exp(logits[i, j]) − logits[i, labels[i]], 0 where labels[i] is kIgnoredLabel.  logits [T, vocab] (wide)   nll [T] (wide)
inline constexpr int32_t kIgnoredLabel = -100;
void CrossEntropy(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, const Tensor& nll);
// dlogits = scale · (softmax − one-hot), 0 in ignored rows; may be logits itself.
void CrossEntropyBackward(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, double scale, const Tensor& dlogits);

// x = scale · x (wide), x = 0.
void Scale(Context& ctx, const Tensor& x, double scale);
void Zero(Context& ctx, const Tensor& x);

}  // namespace ops
}  // namespace bamba
