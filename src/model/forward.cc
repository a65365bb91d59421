#include <cstring>

#include "model/bamba.h"

namespace bamba {
namespace {

void MambaMixer(Context& ctx, const Config& c, const Mamba2& w, const Batch& batch, const MambaState& state, const Tensor& u, const Tensor& y,
                SavedBlock* saved) {
  Tensor proj = ctx.Temp({batch.rows(), c.in_proj_rows()});  // z | x B C | dt
  Tensor xbc = ctx.Temp({batch.rows(), c.conv_dim()});
  Tensor scan = ctx.Temp({batch.rows(), c.inner()}), gated = ctx.Temp({batch.rows(), c.inner()});
  ops::Linear(ctx, u, w.in_proj, proj);
  ops::CausalConvSilu(ctx, proj.Columns(c.xbc()), w.conv, w.conv_bias, batch, state, xbc);
  ops::SsdScan(ctx, xbc, proj.Columns(c.dt()), w.dt_bias, w.a_log, w.d, c.ssd(), batch, state, scan);
  ops::GatedRmsNorm(ctx, scan, proj.Columns(c.z()), w.norm, c.mamba_groups, c.eps, gated);
  ops::Linear(ctx, gated, w.out_proj, y);
  if (saved) saved->proj = proj, saved->xbc = xbc, saved->scan = scan, saved->gated = gated;
}

void AttentionMixer(Context& ctx, const Config& c, const Attention& w, const Batch& batch, const KvPages& kv, const Tensor& u, const Tensor& y,
                    SavedBlock* saved) {
  Tensor q = ctx.Temp({batch.rows(), c.heads * c.head_dim}), mix = ctx.Temp({batch.rows(), c.heads * c.head_dim});
  Tensor k = ctx.Temp({batch.rows(), c.kv_heads * c.head_dim}), v = ctx.Temp({batch.rows(), c.kv_heads * c.head_dim});
  ops::Linear(ctx, u, w.q, q);
  ops::Linear(ctx, u, w.k, k);
  ops::Linear(ctx, u, w.v, v);
  ops::Rope(ctx, q, c.rope_q(), batch);
  ops::Rope(ctx, k, c.rope_k(), batch);
  ops::Attention(ctx, q, k, v, c.attention(), batch, kv, mix);
  ops::Linear(ctx, mix, w.o, y);
  if (saved) saved->q = q, saved->k = k, saved->v = v, saved->mix = mix;
}

void Mlp(Context& ctx, const Config& c, const SwiGlu& w, const Tensor& u, const Tensor& y, SavedBlock* saved) {
  Tensor gate = ctx.Temp({u.rows(), c.ffn}), up = ctx.Temp({u.rows(), c.ffn}), act = saved ? ctx.Temp({u.rows(), c.ffn}) : gate;
  ops::Linear(ctx, u, w.gate, gate);
  ops::Linear(ctx, u, w.up, up);
  ops::SwiGlu(ctx, gate, up, act);
  ops::Linear(ctx, act, w.down, y);
  if (saved) saved->gate = gate, saved->up = up, saved->act = act;
}

// The first rows of x become the wanted ones.
void Narrow(const std::vector<int64_t>& wanted, Tensor& x) {
  for (size_t i = 0; i < wanted.size(); i++) {
    const Tensor to = x.At(static_cast<int64_t>(i)), from = x.At(wanted[i]);
    if (to.data() != from.data()) std::memcpy(to.data(), from.data(), to.bytes());
  }
  x = x.Rows(0, static_cast<int64_t>(wanted.size()));
}

}  // namespace

size_t LastMixer(const Weights& w) {
  size_t last = w.blocks.size() - 1;
  while (last > 0 && w.blocks[last].kind == BlockKind::kSwiGlu) last--;
  return last;
}

void Forward(Context& ctx, const Config& c, const Weights& w, const Batch& batch, States& states, const Tensor& hidden, Saved* saved) {
  Frame frame(ctx, saved != nullptr);
  const size_t blocks = w.blocks.size(), last_mixer = LastMixer(w);
  CHECK_MSG(!saved || !batch.wanted, "a backward pass needs all rows");
  if (saved) saved->blocks.assign(blocks, {});
  Tensor x = ctx.Temp({batch.rows(), c.dim}), u = ctx.Temp({batch.rows(), c.dim}), y = ctx.Temp({batch.rows(), c.dim});
  ops::Embed(ctx, batch, w.embedding.weight, c.embedding_multiplier, x);
  ops::RmsNorm(ctx, x, w.blocks[0].norm, c.eps, u);
  for (size_t i = 0; i < blocks; i++) {
    ctx.layer = static_cast<int>(i);
    Frame block_frame(ctx, saved != nullptr);
    const SubBlock& block = w.blocks[i];
    SavedBlock* keep = saved ? &saved->blocks[i] : nullptr;
    if (keep) keep->x = x, keep->u = u;
    switch (block.kind) {
      case BlockKind::kMamba2: MambaMixer(ctx, c, block.mamba, batch, states.mamba.empty() ? MambaState{} : states.mamba[i], u, y, keep); break;
      case BlockKind::kAttention: AttentionMixer(ctx, c, block.attention, batch, states.kv.empty() ? KvPages{} : states.kv[i], u, y, keep); break;
      case BlockKind::kSwiGlu: Mlp(ctx, c, block.mlp, u, y, keep); break;
    }
    if (i == last_mixer && batch.wanted) Narrow(*batch.wanted, x), Narrow(*batch.wanted, y), u = u.Rows(0, x.rows());
    const bool last = i + 1 == blocks;
    Tensor sum = saved ? ctx.Temp({batch.rows(), c.dim}) : x, next = last ? hidden : saved ? ctx.Temp({batch.rows(), c.dim}) : u;
    ops::AddRmsNorm(ctx, x, y, c.residual_multiplier, last ? w.final_norm : w.blocks[i + 1].norm, c.eps, sum, next);
    x = sum, u = next;
  }
  ctx.layer = -1;
  if (saved) saved->x = x;
}

}  // namespace bamba
