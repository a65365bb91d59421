#include "model/params.h"

#include <algorithm>
#include <map>

#include "base/buffer.h"

namespace bamba {

const char* Name(Role role) {
  switch (role) {
    case Role::kEmbedding: return "embedding";
    case Role::kMatrix: return "matrix";
    case Role::kNorm: return "norm";
    case Role::kVector: return "vector";
  }
  return "?";
}

int64_t Param::size() const {
  int64_t n = 1;
  for (int64_t s : shape) n *= s;
  return n;
}

namespace {

class Table {
 public:
  // Names of rows that follow start with these, and belong to this sub-block.
  void In(std::string prefix, std::string ssm_prefix, int block) { prefix_ = std::move(prefix), ssm_prefix_ = std::move(ssm_prefix), block_ = block; }

  // `ssm` may be empty: no place in the mamba_ssm form.
  void Row(const char* name, const char* ssm, Role role, Tensor* tensor, std::vector<int64_t> shape, int64_t ssm_row = 0) {
    rows_.push_back({prefix_ + name, role, block_, tensor, std::move(shape), *ssm ? ssm_prefix_ + ssm : "", ssm_row});
  }

  std::vector<Param> Take() { return std::move(rows_); }

 private:
  std::string prefix_, ssm_prefix_;
  int block_ = -1;
  std::vector<Param> rows_;
};

void MambaRows(Table& t, const Config& c, Mamba2& m) {
  t.Row("mamba.in_proj.weight", "mixer.in_proj.weight", Role::kMatrix, &m.in_proj.weight, {c.in_proj_rows(), c.dim});
  if (c.mamba_bias) t.Row("mamba.in_proj.bias", "mixer.in_proj.bias", Role::kVector, &m.in_proj.bias, {c.in_proj_rows()});
  t.Row("mamba.conv1d.weight", "mixer.conv1d.weight", Role::kVector, &m.conv, {c.conv_dim(), 1, c.d_conv});
  if (c.conv_bias) t.Row("mamba.conv1d.bias", "mixer.conv1d.bias", Role::kVector, &m.conv_bias, {c.conv_dim()});
  t.Row("mamba.dt_bias", "mixer.dt_bias", Role::kVector, &m.dt_bias, {c.mamba_heads});
  t.Row("mamba.A_log", "mixer.A_log", Role::kVector, &m.a_log, {c.mamba_heads});
  t.Row("mamba.D", "mixer.D", Role::kVector, &m.d, {c.mamba_heads});
  t.Row("mamba.norm.weight", "mixer.norm.weight", Role::kNorm, &m.norm, {c.inner()});
  t.Row("mamba.out_proj.weight", "mixer.out_proj.weight", Role::kMatrix, &m.out_proj.weight, {c.dim, c.inner()});
  if (c.mamba_bias) t.Row("mamba.out_proj.bias", "mixer.out_proj.bias", Role::kVector, &m.out_proj.bias, {c.dim});
}

void AttentionRows(Table& t, const Config& c, Attention& a) {
  const int64_t q_rows = c.heads * c.head_dim, kv_rows = c.kv_heads * c.head_dim;
  t.Row("self_attn.q_proj.weight", "mixer.in_proj.weight", Role::kMatrix, &a.q.weight, {q_rows, c.dim}, 0);
  t.Row("self_attn.k_proj.weight", "mixer.in_proj.weight", Role::kMatrix, &a.k.weight, {kv_rows, c.dim}, q_rows);
  t.Row("self_attn.v_proj.weight", "mixer.in_proj.weight", Role::kMatrix, &a.v.weight, {kv_rows, c.dim}, q_rows + kv_rows);
  t.Row("self_attn.o_proj.weight", "mixer.out_proj.weight", Role::kMatrix, &a.o.weight, {c.dim, q_rows});
  if (!c.attention_bias) return;
  t.Row("self_attn.q_proj.bias", "", Role::kVector, &a.q.bias, {q_rows});
  t.Row("self_attn.k_proj.bias", "", Role::kVector, &a.k.bias, {kv_rows});
  t.Row("self_attn.v_proj.bias", "", Role::kVector, &a.v.bias, {kv_rows});
  t.Row("self_attn.o_proj.bias", "", Role::kVector, &a.o.bias, {c.dim});
}

void MlpRows(Table& t, const Config& c, SwiGlu& m) {
  t.Row("feed_forward.gate_proj.weight", "mlp.fc1.weight", Role::kMatrix, &m.gate.weight, {c.ffn, c.dim}, c.ffn);
  t.Row("feed_forward.up_proj.weight", "mlp.fc1.weight", Role::kMatrix, &m.up.weight, {c.ffn, c.dim}, 0);
  t.Row("feed_forward.down_proj.weight", "mlp.fc2.weight", Role::kMatrix, &m.down.weight, {c.dim, c.ffn});
  if (!c.mlp_bias) return;
  t.Row("feed_forward.gate_proj.bias", "", Role::kVector, &m.gate.bias, {c.ffn});
  t.Row("feed_forward.up_proj.bias", "", Role::kVector, &m.up.bias, {c.ffn});
  t.Row("feed_forward.down_proj.bias", "", Role::kVector, &m.down.bias, {c.dim});
}

}  // namespace

Weights EmptyWeights(const Config& config) {
  Weights w;
  for (BlockKind kind : config.blocks) w.blocks.push_back({.kind = kind});
  return w;
}

std::vector<Param> Parameters(const Config& c, Weights& w) {
  Table t;
  t.In("model.", "backbone.", -1);
  t.Row("embed_tokens.weight", "embedding.weight", Role::kEmbedding, &w.embedding.weight, {c.vocab, c.dim});
  int layer = -1;
  for (size_t i = 0; i < w.blocks.size(); i++) {
    SubBlock& block = w.blocks[i];
    const bool mixer = block.kind != BlockKind::kSwiGlu;
    layer += mixer;  // a layer is a mixer and the MLP after it
    t.In("model.layers." + std::to_string(layer) + ".", "backbone.layers." + std::to_string(layer) + ".", static_cast<int>(i));
    t.Row(mixer ? "input_layernorm.weight" : "pre_ff_layernorm.weight", mixer ? "norm.weight" : "norm2.weight", Role::kNorm, &block.norm, {c.dim});
    switch (block.kind) {
      case BlockKind::kMamba2: MambaRows(t, c, block.mamba); break;
      case BlockKind::kAttention: AttentionRows(t, c, block.attention); break;
      case BlockKind::kSwiGlu: MlpRows(t, c, block.mlp); break;
    }
  }
  t.In("model.", "backbone.", -1);
  t.Row("final_layernorm.weight", "norm_f.weight", Role::kNorm, &w.final_norm, {c.dim});
  t.In("", "", -1);
  if (!c.tied) t.Row("lm_head.weight", "lm_head.weight", Role::kEmbedding, &w.head.weight, {c.vocab, c.dim});
  return t.Take();
}

void TieHead(const Config& config, Weights& weights) {
  if (config.tied) weights.head = weights.embedding;
}

int64_t ParameterCount(const Config& config) {
  Weights weights = EmptyWeights(config);
  int64_t n = 0;
  for (const Param& p : Parameters(config, weights)) n += p.size();
  return n;
}

Dtype MainDtype(const Model& model) {
  Weights weights = model.weights;
  std::map<Dtype, size_t> bytes;
  for (const Param& p : Parameters(model.config, weights)) bytes[p.tensor->dtype()] += p.tensor->bytes();
  return std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
}

std::string DtypeName(const Model& model) {
  const std::string held = Name(MainDtype(model));
  return model.stored ? std::string(Name(*model.stored)) + " held as " + held : held;
}

Model AllocateModel(const Config& config, Dtype dtype) {
  Model model{.config = config, .weights = EmptyWeights(config)};
  const auto params = Parameters(config, model.weights);
  const auto aligned = [&](const Param& p) {
    return (static_cast<size_t>(p.size()) * SizeOf(dtype) + Workspace::kAlign - 1) / Workspace::kAlign * Workspace::kAlign;
  };
  size_t bytes = 0;
  for (const Param& p : params) bytes += aligned(p);
  auto buffer = std::make_shared<Buffer>(bytes);
  char* at = buffer->data();
  for (const Param& p : params) {
    *p.tensor = Tensor(at, dtype, p.shape.data(), static_cast<int>(p.shape.size()));
    at += aligned(p);
  }
  TieHead(config, model.weights);
  model.storage.push_back(std::move(buffer));
  return model;
}

}  // namespace bamba
