#include "model/bamba.h"

namespace bamba {
namespace {

// Rows that somebody asks for, null: all. What mixes rows needs all of them; in the last mixer and behind it, what doesn't needs these alone.
using Wanted = const std::vector<int64_t>*;

Tensor Keep(Context& ctx, Wanted wanted, const Tensor& x) {
  if (!wanted) return x;
  ops::KeepRows(ctx, *wanted, x);
  return x.Rows(0, std::ssize(*wanted));
}

void MambaMixer(Context& ctx, const Config& c, const Mamba2& w, const Batch& batch, const MambaState& state, const Tensor& u, Wanted wanted, const Tensor& y,
                SavedBlock* saved) {
  Tensor proj = ctx.Temp({batch.rows(), c.in_proj_rows()});  // z | x B C | dt
  Tensor xbc = ctx.Temp({batch.rows(), c.conv_dim()});
  Tensor scan = ctx.Temp({batch.rows(), c.inner()}), gated = ctx.Temp({y.rows(), c.inner()}), z = proj.Columns(c.z()).Rows(0, y.rows());
  if (wanted) {
    const Range mixed = {c.inner(), c.in_proj_rows() - c.inner()};
    ops::Linear(ctx, u, w.in_proj.Outputs(mixed), proj.Columns(mixed));
    ops::Linear(ctx, Keep(ctx, wanted, u), w.in_proj.Outputs(c.z()), z);
  } else {
    ops::Linear(ctx, u, w.in_proj, proj);
  }
  ops::ConvScan(ctx, proj.Columns(c.xbc()), w.conv, w.conv_bias, proj.Columns(c.dt()), w.dt_bias, w.a_log, w.d, c.ssd(), batch, state, xbc, scan);
  ops::GatedRmsNorm(ctx, Keep(ctx, wanted, scan), z, w.norm, c.mamba_groups, c.eps, gated);
  ops::Linear(ctx, gated, w.out_proj, y);
  if (saved) saved->proj = proj, saved->xbc = xbc, saved->scan = scan, saved->gated = gated;
}

void AttentionMixer(Context& ctx, const Config& c, const Attention& w, const Batch& batch, const KvPages& kv, const Tensor& u, Wanted wanted, const Tensor& y,
                    SavedBlock* saved) {
  Tensor qkv = ctx.Temp({batch.rows(), c.qkv_rows()}), mix = ctx.Temp({batch.rows(), c.heads * c.head_dim});
  Tensor q = qkv.Columns(c.q()), k = qkv.Columns(c.k()), v = qkv.Columns(c.v());
  ops::Linears(ctx, u, {w.q, w.k, w.v}, qkv);
  ops::Rope(ctx, qkv.Columns(c.qk()), c.rope_qk(), batch);
  ops::Attention(ctx, q, k, v, c.attention(), batch, kv, mix);
  ops::Linear(ctx, Keep(ctx, wanted, mix), w.o, y);
  if (saved) saved->q = q, saved->k = k, saved->v = v, saved->mix = mix;
}

void Mlp(Context& ctx, const Config& c, const SwiGlu& w, const Tensor& u, const Tensor& y, SavedBlock* saved) {
  Tensor gate_up = ctx.Temp({u.rows(), 2 * c.ffn}), act = ctx.Temp({u.rows(), c.ffn});
  ops::SwiGluLinears(ctx, u, w.gate, w.up, gate_up, act);
  ops::Linear(ctx, act, w.down, y);
  if (saved) saved->gate = gate_up.Columns({0, c.ffn}), saved->up = gate_up.Columns({c.ffn, c.ffn}), saved->act = act;
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
  Tensor x = ctx.WideTemp({batch.rows(), c.dim}), u = ctx.Temp({batch.rows(), c.dim}), y = ctx.Temp({batch.rows(), c.dim});
  ops::Begin(ctx, batch);
  ops::Embed(ctx, batch, w.embedding.weight, c.embedding_multiplier, x);
  ops::RmsNorm(ctx, x, w.blocks[0].norm, c.eps, u);
  for (size_t i = 0; i < blocks; i++) {
    ctx.layer = static_cast<int>(i);
    Frame block_frame(ctx, saved != nullptr);
    const SubBlock& block = w.blocks[i];
    SavedBlock* keep = saved ? &saved->blocks[i] : nullptr;
    if (keep) keep->x = x, keep->u = u;
    const Wanted wanted = i == last_mixer && batch.wanted && std::ssize(*batch.wanted) < batch.rows() ? &*batch.wanted : nullptr;
    x = Keep(ctx, wanted, x), y = y.Rows(0, x.rows());
    switch (block.kind) {
      case BlockKind::kMamba2: MambaMixer(ctx, c, block.mamba, batch, states.mamba.empty() ? MambaState{} : states.mamba[i], u, wanted, y, keep); break;
      case BlockKind::kAttention: AttentionMixer(ctx, c, block.attention, batch, states.kv.empty() ? KvPages{} : states.kv[i], u, wanted, y, keep); break;
      case BlockKind::kSwiGlu: Mlp(ctx, c, block.mlp, u, y, keep); break;
    }
    u = u.Rows(0, x.rows());
    const bool last = i + 1 == blocks;
    Tensor sum = saved ? ctx.WideTemp({batch.rows(), c.dim}) : x, next = last ? hidden : saved ? ctx.Temp({batch.rows(), c.dim}) : u;
    ops::AddRmsNorm(ctx, x, y, c.residual_multiplier, last ? w.final_norm : w.blocks[i + 1].norm, c.eps, sum, next);
    x = sum, u = next;
  }
  ctx.layer = -1;
  if (saved) saved->x = x;
}

}  // namespace bamba
