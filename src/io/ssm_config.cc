// config.json of mamba_ssm: the arguments of its MambaConfig, with the keyword arguments of its Mamba2 in ssm_cfg and of its MHA in attn_cfg. Defaults of
// absent keys are those of these classes.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/config_forms.h"

namespace bamba {
namespace {

constexpr double kSsmEps = 1e-5;  // of every norm; the form has no key for it
constexpr int64_t kMaxLayers = 4096;

void RefuseUnknown(const JsonKeys& keys, std::initializer_list<std::string_view> known) {
  for (const auto& member : keys.object())
    if (std::find(known.begin(), known.end(), member.key()) == known.end()) keys.Fail(member.key(), "no such argument; what it would change is not built");
}

void RequireBool(const JsonKeys& keys, std::string_view key, bool absent, bool built) {
  if (keys.Bool(key).value_or(absent) != built) keys.Fail(key, built ? "true: nothing else is built" : "false: nothing else is built");
}

void ParseMamba(const JsonKeys& keys, Config& c) {
  RefuseUnknown(
      keys, {"layer", "d_state",    "d_conv",  "expand",           "headdim",   "ngroups",      "chunk_size", "bias",   "conv_bias",     "dt_limit",
             "d_ssm", "D_has_hdim", "rmsnorm", "norm_before_gate", "conv_init", "A_init_range", "dt_min",     "dt_max", "dt_init_floor", "use_mem_eff_path"});
  if (keys.Text("layer").value_or("Mamba1") != "Mamba2") keys.Fail("layer", "\"Mamba2\" (absent means Mamba1, which is another model)");
  RequireBool(keys, "D_has_hdim", false, false);
  RequireBool(keys, "rmsnorm", true, true);
  RequireBool(keys, "norm_before_gate", false, false);
  c.mamba_state = keys.Int("d_state").value_or(128);
  c.d_conv = keys.Int("d_conv").value_or(4);
  c.mamba_head_dim = keys.Int("headdim").value_or(64);
  c.mamba_groups = keys.Int("ngroups").value_or(1);
  c.mamba_chunk = keys.Int("chunk_size").value_or(256);
  c.mamba_bias = keys.Bool("bias").value_or(false);
  c.conv_bias = keys.Bool("conv_bias").value_or(true);
  ParseDtLimit(keys, "dt_limit", c);
  // Doubles: the product of two absurd numbers must not overflow.
  const double inner = keys.Number("expand").value_or(2) * static_cast<double>(c.dim);
  if (!(inner >= 1 && inner <= 0x1p24) || inner != std::floor(inner)) keys.Fail("expand", "a factor that makes expand · d_model a plausible width");
  if (const auto width = keys.Int("d_ssm"); width && static_cast<double>(*width) != inner) keys.Fail("d_ssm", "expand · d_model: nothing else is built");
  const int64_t width = static_cast<int64_t>(inner);
  if (c.mamba_head_dim < 1 || width % c.mamba_head_dim != 0) keys.Fail("headdim", fmt::format("a divisor of expand · d_model = {}", width));
  c.mamba_heads = width / c.mamba_head_dim;
}

void ParseAttention(const JsonKeys& keys, Config& c) {
  RefuseUnknown(keys, {"causal", "d_conv", "head_dim", "num_heads", "num_heads_kv", "out_proj_bias", "qkv_proj_bias", "rotary_emb_dim", "rotary_emb_base",
                       "rotary_emb_interleaved", "softmax_scale", "mlp_dim"});
  RequireBool(keys, "causal", false, true);
  // Where absent they are true, but then their tensors are in the file, and loading names those.
  RequireBool(keys, "qkv_proj_bias", false, false);
  RequireBool(keys, "out_proj_bias", false, false);
  RequireBool(keys, "rotary_emb_interleaved", false, false);
  for (const char* key : {"d_conv", "mlp_dim"})
    if (keys.Int(key).value_or(0) != 0) keys.Fail(key, "0: nothing else is built");
  c.heads = keys.RequiredInt("num_heads");
  c.kv_heads = keys.Int("num_heads_kv").value_or(c.heads);
  if (const auto head_dim = keys.Int("head_dim"))
    c.head_dim = *head_dim;
  else if (c.heads > 0 && c.dim % c.heads == 0)
    c.head_dim = c.dim / c.heads;
  else
    keys.Fail("num_heads", fmt::format("a divisor of d_model = {}", c.dim));
  c.rope_dims = keys.Int("rotary_emb_dim").value_or(0);
  c.rope_theta = keys.Number("rotary_emb_base").value_or(10000);
  c.attention_multiplier = keys.Number("softmax_scale");
  if (c.attention_multiplier && !std::isfinite(*c.attention_multiplier)) keys.Fail("softmax_scale", "a finite number");
}

std::vector<BlockKind> ParseBlocks(const JsonKeys& keys, bool mlp) {
  const int64_t layers = keys.RequiredInt("n_layer");
  if (layers < 1 || layers > kMaxLayers) keys.Fail("n_layer", fmt::format("1 to {}", kMaxLayers));
  std::vector<BlockKind> mixers(static_cast<size_t>(layers), BlockKind::kMamba2), blocks;
  if (const json::array* indices = keys.Array("attn_layer_idx")) {
    for (const json::value& item : *indices) {
      const auto i = AsInt(item);
      if (!i || *i < 0 || *i >= layers) keys.Fail("attn_layer_idx", fmt::format("numbers of layers, 0 to {}", layers - 1));
      mixers[static_cast<size_t>(*i)] = BlockKind::kAttention;
    }
  }
  for (BlockKind mixer : mixers) {
    blocks.push_back(mixer);
    if (mlp) blocks.push_back(BlockKind::kSwiGlu);
  }
  return blocks;
}

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

ConfigFile ParseSsmConfig(const JsonKeys& keys) {
  ConfigFile file{.form = CheckpointForm::kMambaSsm};
  Config& c = file.config;
  RequireBool(keys, "rms_norm", true, true);
  c.dim = keys.RequiredInt("d_model");
  c.vocab = keys.RequiredInt("vocab_size");
  c.ffn = keys.Int("d_intermediate").value_or(0);
  c.eps = kSsmEps;
  c.tied = keys.Bool("tie_embeddings").value_or(true);
  c.blocks = ParseBlocks(keys, c.ffn != 0);
  if (c.Count(BlockKind::kMamba2) > 0) {
    const auto ssm = keys.Object("ssm_cfg");
    if (!ssm) keys.Fail("ssm_cfg", "{\"layer\": \"Mamba2\", …}");
    ParseMamba(*ssm, c);
  }
  if (c.Count(BlockKind::kAttention) > 0) {
    const auto attention = keys.Object("attn_cfg");
    if (!attention) keys.Fail("attn_cfg", "the arguments of the attention layers that attn_layer_idx names");
    ParseAttention(*attention, c);
  }
  const int64_t multiple = keys.Int("pad_vocab_size_multiple").value_or(8);
  if (multiple < 1 || multiple > 1 << 20) keys.Fail("pad_vocab_size_multiple", "1 to 1048576");
  Validate(c, keys.where());  // before arithmetic with its sizes
  file.vocab_rows = RoundUp(c.vocab, multiple);
  return file;
}

json::object SsmConfigJson(const Config& c, const std::string& where) {
  const auto refuse = [&](const char* key, const std::string& what) { throw Error("{}: the mamba_ssm form has no place for {} = {}", where, key, what); };
  if (c.eps != kSsmEps) refuse("rms_norm_eps", fmt::format("{}; it always means 1e-05", c.eps));
  const bool mamba = c.Count(BlockKind::kMamba2) > 0, attends = c.Count(BlockKind::kAttention) > 0, mlp = c.Count(BlockKind::kSwiGlu) > 0;
  if (mlp && c.mlp_bias) refuse("mlp_bias", "true");
  if (attends && c.attention_bias) refuse("attention_bias", "true");
  if (c.embedding_multiplier != 1) refuse("embedding_multiplier", fmt::format("{}", c.embedding_multiplier));
  if (c.residual_multiplier != 1) refuse("residual_multiplier", fmt::format("{}", c.residual_multiplier));
  if (c.logits_multiplier != 1) refuse("logits_multiplier", fmt::format("{}", c.logits_multiplier));
  if (mamba && c.inner() % c.dim != 0) refuse("mamba_expand", fmt::format("{}/{}", c.inner(), c.dim));
  json::array indices;
  for (size_t i = 0, stride = mlp ? 2 : 1; i < c.blocks.size(); i++) {
    const bool is_mlp = c.blocks[i] == BlockKind::kSwiGlu;
    if (is_mlp != (mlp && i % stride == 1) || c.blocks.size() % stride != 0) refuse("the sub-blocks", "other than a mixer and an MLP in each layer");
    if (c.blocks[i] == BlockKind::kAttention) indices.push_back(i / stride);
  }

  json::object ssm{{"layer", "Mamba2"}}, attention;
  const auto differs = [&](const char* key, int64_t value, int64_t by_default) {
    if (value != by_default) ssm[key] = value;
  };
  if (mamba) {
    differs("d_state", c.mamba_state, 128);
    differs("headdim", c.mamba_head_dim, 64);
    differs("ngroups", c.mamba_groups, 1);
    differs("d_conv", c.d_conv, 4);
    differs("expand", c.inner() / c.dim, 2);
    differs("chunk_size", c.mamba_chunk, 256);
    if (c.mamba_bias) ssm["bias"] = true;
    if (!c.conv_bias) ssm["conv_bias"] = false;
    if (c.dt_min != 0 || !std::isinf(c.dt_max)) ssm["dt_limit"] = DtLimitJson(c);
  }
  if (attends) {
    attention = {{"causal", true}, {"d_conv", 0}, {"head_dim", c.head_dim}, {"num_heads", c.heads}, {"num_heads_kv", c.kv_heads}};
    attention["out_proj_bias"] = false;
    attention["qkv_proj_bias"] = false;
    attention["rotary_emb_dim"] = c.rope_dims;
    if (c.rope_theta != 10000) attention["rotary_emb_base"] = c.rope_theta;
    if (c.attention_multiplier) attention["softmax_scale"] = *c.attention_multiplier;
  }
  return {{"d_model", c.dim},
          {"d_intermediate", mlp ? c.ffn : 0},
          {"n_layer", c.layers()},
          {"vocab_size", c.vocab},
          {"ssm_cfg", ssm},
          {"attn_layer_idx", indices},
          {"attn_cfg", attention},
          {"rms_norm", true},
          {"residual_in_fp32", true},
          {"fused_add_norm", true},
          {"pad_vocab_size_multiple", kSsmVocabMultiple},
          {"tie_embeddings", c.tied}};
}

}  // namespace bamba
