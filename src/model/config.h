#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace bamba {

enum class BlockKind : uint8_t { kMamba2, kAttention, kSwiGlu };
const char* Name(BlockKind kind);  // "mamba2", "attention", "swiglu"

// The numbers of a model: a list of residual sub-blocks and their sizes. A variant is a number here, never a flag in the code.
struct Config {
  std::vector<BlockKind> blocks;  // Bamba: {mamba2 or attention, swiglu} for each layer
  int64_t vocab = 0, dim = 0;
  double eps = 1e-5;  // of every norm
  bool tied = false;  // the head is the embedding matrix

  // Mamba-2 mixers
  int64_t mamba_heads = 0, mamba_head_dim = 0, mamba_state = 0, mamba_groups = 1, d_conv = 4;
  bool conv_bias = true, mamba_bias = false;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();

  // Attention mixers
  int64_t heads = 0, kv_heads = 0, head_dim = 0, rope_dims = 0;
  double rope_theta = 10000;
  bool attention_bias = false;

  // MLPs
  int64_t ffn = 0;
  bool mlp_bias = false;

  // 1 for Bamba; siblings scale. `attention_multiplier` replaces 1/√head_dim where set.
  double embedding_multiplier = 1, residual_multiplier = 1, logits_multiplier = 1;
  std::optional<double> attention_multiplier;

  // Carried along for generation and for writing the model again; the forward pass does not read them.
  int64_t context = 0;        // max_position_embeddings: what the model was trained for, not a limit of ours
  int64_t mamba_chunk = 256;  // the trainers' blocking
  double initializer_range = 0.02, z_loss = 0;
  std::optional<int32_t> bos, pad;
  std::vector<int32_t> eos;  // any of them ends a text

  int64_t inner() const { return mamba_heads * mamba_head_dim; }
  int64_t conv_dim() const { return inner() + 2 * mamba_groups * mamba_state; }
  int64_t in_proj_rows() const { return inner() + conv_dim() + mamba_heads; }
  Range z() const { return {0, inner()}; }  // columns of in_proj's output: z | xBC | dt
  Range xbc() const { return {inner(), conv_dim()}; }
  Range dt() const { return {inner() + conv_dim(), mamba_heads}; }
  Range q() const { return {0, heads * head_dim}; }  // columns of attention's projections: q | k | v
  Range k() const { return {q().end(), kv_heads * head_dim}; }
  Range qk() const { return {0, k().end()}; }
  Range v() const { return {k().end(), kv_heads * head_dim}; }
  int64_t qkv_rows() const { return v().end(); }
  SsdShape ssd() const { return {mamba_heads, mamba_head_dim, mamba_state, mamba_groups, dt_min, dt_max}; }
  AttentionShape attention() const;
  RopeShape rope_q() const { return {heads, head_dim, rope_dims, rope_theta}; }
  RopeShape rope_qk() const { return {heads + kv_heads, head_dim, rope_dims, rope_theta}; }
  RopeShape rope_k() const { return {kv_heads, head_dim, rope_dims, rope_theta}; }
  int64_t Count(BlockKind kind) const;
  int64_t layers() const;  // pairs of mixer and MLP
};

// Throws Error naming `where` (a file) and the key if the numbers can't be a model: sizes that are zero, absurd or don't divide.
void Validate(const Config& config, const std::string& where);

}  // namespace bamba
