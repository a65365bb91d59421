// forward.cc from the bottom up: each line is the gradient of its twin.
#include "model/bamba.h"

namespace bamba {
namespace {

void MambaMixerBackward(Context& ctx, const Config& c, const Mamba2& w, const Batch& batch, const SavedBlock& saved, const Tensor& dy, const Tensor& du,
                        Mamba2& g) {
  const Tensor& proj = saved.proj;
  Tensor dproj = ctx.Temp({batch.rows(), c.in_proj_rows()}), dxbc = ctx.Temp({batch.rows(), c.conv_dim()});
  Tensor dscan = ctx.Temp({batch.rows(), c.inner()}), dgated = ctx.Temp({batch.rows(), c.inner()});
  ops::LinearBackward(ctx, saved.gated, w.out_proj, dy, Into::kWrite, dgated, g.out_proj);
  ops::GatedRmsNormBackward(ctx, saved.scan, proj.Columns(c.z()), w.norm, c.mamba_groups, c.eps, dgated, dscan, dproj.Columns(c.z()), g.norm);
  ops::SsdScanBackward(ctx, saved.xbc, proj.Columns(c.dt()), w.dt_bias, w.a_log, w.d, c.ssd(), batch, {}, dscan, dxbc, dproj.Columns(c.dt()), g.dt_bias,
                       g.a_log, g.d, {});
  ops::CausalConvSiluBackward(ctx, proj.Columns(c.xbc()), w.conv, w.conv_bias, batch, dxbc, dproj.Columns(c.xbc()), g.conv, g.conv_bias);
  ops::LinearBackward(ctx, saved.u, w.in_proj, dproj, Into::kWrite, du, g.in_proj);
}

void AttentionMixerBackward(Context& ctx, const Config& c, const Attention& w, const Batch& batch, const SavedBlock& saved, const Tensor& dy, const Tensor& du,
                            Attention& g) {
  Tensor dq = ctx.Temp({batch.rows(), c.heads * c.head_dim}), dmix = ctx.Temp({batch.rows(), c.heads * c.head_dim});
  Tensor dk = ctx.Temp({batch.rows(), c.kv_heads * c.head_dim}), dv = ctx.Temp({batch.rows(), c.kv_heads * c.head_dim});
  ops::LinearBackward(ctx, saved.mix, w.o, dy, Into::kWrite, dmix, g.o);
  ops::AttentionBackward(ctx, saved.q, saved.k, saved.v, c.attention(), batch, saved.mix, dmix, dq, dk, dv);
  ops::RopeBackward(ctx, dk, c.rope_k(), batch);
  ops::RopeBackward(ctx, dq, c.rope_q(), batch);
  ops::LinearBackward(ctx, saved.u, w.v, dv, Into::kWrite, du, g.v);
  ops::LinearBackward(ctx, saved.u, w.k, dk, Into::kAdd, du, g.k);
  ops::LinearBackward(ctx, saved.u, w.q, dq, Into::kAdd, du, g.q);
}

void MlpBackward(Context& ctx, const Config& c, const SwiGlu& w, const SavedBlock& saved, const Tensor& dy, const Tensor& du, SwiGlu& g) {
  Tensor dact = ctx.Temp({dy.rows(), c.ffn}), dgate = ctx.Temp({dy.rows(), c.ffn}), dup = ctx.Temp({dy.rows(), c.ffn});
  ops::LinearBackward(ctx, saved.act, w.down, dy, Into::kWrite, dact, g.down);
  ops::SwiGluBackward(ctx, saved.gate, saved.up, dact, dgate, dup);
  ops::LinearBackward(ctx, saved.u, w.up, dup, Into::kWrite, du, g.up);
  ops::LinearBackward(ctx, saved.u, w.gate, dgate, Into::kAdd, du, g.gate);
}

}  // namespace

void Backward(Context& ctx, const Config& c, const Weights& w, const Batch& batch, const Saved& saved, const Tensor& dhidden, Weights& grads) {
  Frame frame(ctx);
  const size_t blocks = w.blocks.size();
  Tensor dx = ctx.Temp({batch.rows(), c.dim}), du = ctx.Temp({batch.rows(), c.dim}), dy = ctx.Temp({batch.rows(), c.dim});
  ops::Zero(ctx, dx);
  for (size_t i = blocks; i-- > 0;) {
    ctx.layer = static_cast<int>(i);
    Frame block_frame(ctx);
    const SubBlock& block = w.blocks[i];
    SubBlock& grad = grads.blocks[i];
    const bool last = i + 1 == blocks;
    ops::AddRmsNormBackward(ctx, last ? saved.x : saved.blocks[i + 1].x, c.residual_multiplier, last ? w.final_norm : w.blocks[i + 1].norm, c.eps,
                            last ? dhidden : du, dx, dy, last ? grads.final_norm : grads.blocks[i + 1].norm);
    switch (block.kind) {
      case BlockKind::kMamba2: MambaMixerBackward(ctx, c, block.mamba, batch, saved.blocks[i], dy, du, grad.mamba); break;
      case BlockKind::kAttention: AttentionMixerBackward(ctx, c, block.attention, batch, saved.blocks[i], dy, du, grad.attention); break;
      case BlockKind::kSwiGlu: MlpBackward(ctx, c, block.mlp, saved.blocks[i], dy, du, grad.mlp); break;
    }
  }
  ctx.layer = -1;
  ops::RmsNormBackward(ctx, saved.blocks[0].x, w.blocks[0].norm, c.eps, du, dx, grads.blocks[0].norm);
  ops::EmbedBackward(ctx, batch, dx, c.embedding_multiplier, grads.embedding.weight);
}

}  // namespace bamba
