// config.json of transformers 4 and 5 (its model_type "bamba"). Defaults of absent keys are those of its BambaConfig.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/config_forms.h"

namespace bamba {
namespace {

constexpr int64_t kMaxLayers = 4096;
constexpr double kDefaultRotaryFactor = 0.5;  // hard-set by transformers' Bamba

// Keys of sibling models that would change results; none of them is Bamba's.
struct ForeignKey {
  const char* name;
  std::optional<double> harmless;
};
constexpr ForeignKey kForeignKeys[] = {
    {"sliding_window", {}},        {"num_local_experts", 0.0},   {"num_experts", 0.0},    {"num_experts_per_tok", 0.0},
    {"embedding_multiplier", 1.0}, {"residual_multiplier", 1.0}, {"logits_scaling", 1.0}, {"attention_multiplier", {}},
};

void RefuseWhatIsNotBamba(const JsonKeys& keys) {
  if (const json::value* type = keys.Find("model_type")) {
    if (*type != "bamba") keys.Fail("model_type", "\"bamba\", the only one that is built");
  } else if (const json::array* names = keys.Array("architectures"); !names || std::find(names->begin(), names->end(), "BambaForCausalLM") == names->end()) {
    keys.Fail("model_type", "\"bamba\"");
  }
  if (keys.Find("quantization_config")) keys.Fail("quantization_config", "an unquantised checkpoint");
  if (const auto act = keys.Text("hidden_act"); act && *act != "silu" && *act != "swish") keys.Fail("hidden_act", "\"silu\"");
  for (const ForeignKey& key : kForeignKeys)
    if (const json::value* value = keys.Find(key.name); value && (!key.harmless || AsNumber(*value) != key.harmless))
      keys.Fail(key.name, "a Bamba model, which has no such key");
}

std::vector<BlockKind> ParseLayerTypes(const JsonKeys& keys, std::string_view key, int64_t layers) {
  std::vector<BlockKind> kinds;
  for (const json::value& item : *keys.Array(key)) {
    if (item == "mamba" || item == "linear_attention")
      kinds.push_back(BlockKind::kMamba2);
    else if (item == "attention" || item == "full_attention")
      kinds.push_back(BlockKind::kAttention);
    else
      keys.Fail(key, "a list of \"mamba\" and \"attention\"");
  }
  if (static_cast<int64_t>(kinds.size()) != layers) keys.Fail(key, fmt::format("one entry for each of the {} layers", layers));
  return kinds;
}

std::vector<BlockKind> ParseBlocks(const JsonKeys& keys) {
  const int64_t layers = keys.Int("num_hidden_layers").value_or(32);
  if (layers < 1 || layers > kMaxLayers) keys.Fail("num_hidden_layers", fmt::format("1 to {}", kMaxLayers));
  std::vector<BlockKind> mixers(static_cast<size_t>(layers), BlockKind::kMamba2);
  const json::array* indices = keys.Array("attn_layer_indices");
  if (indices) {
    for (const json::value& item : *indices) {
      const auto i = AsInt(item);
      if (!i || *i < 0 || *i >= layers) keys.Fail("attn_layer_indices", fmt::format("numbers of layers, 0 to {}", layers - 1));
      mixers[static_cast<size_t>(*i)] = BlockKind::kAttention;
    }
  }
  for (std::string_view key : {"layers_block_type", "layer_types"}) {
    if (!keys.Array(key)) continue;
    const auto listed = ParseLayerTypes(keys, key, layers);
    if (indices && listed != mixers) keys.Fail(key, "the layers that attn_layer_indices names");
    mixers = listed;
  }
  std::vector<BlockKind> blocks;
  for (BlockKind mixer : mixers) blocks.insert(blocks.end(), {mixer, BlockKind::kSwiGlu});
  return blocks;
}

void ParseMamba(const JsonKeys& keys, Config& c) {
  c.mamba_heads = keys.Int("mamba_n_heads").value_or(128);
  c.mamba_state = keys.Int("mamba_d_state").value_or(256);
  c.mamba_groups = keys.Int("mamba_n_groups").value_or(1);
  c.d_conv = keys.Int("mamba_d_conv").value_or(4);
  c.conv_bias = keys.Bool("mamba_conv_bias").value_or(true);
  c.mamba_bias = keys.Bool("mamba_proj_bias").value_or(false);
  c.mamba_chunk = keys.Int("mamba_chunk_size").value_or(256);
  ParseDtLimit(keys, "time_step_limit", c);

  // Doubles: products of two absurd numbers must not overflow before Validate sees them.
  const double inner = keys.Number("mamba_expand").value_or(2) * static_cast<double>(c.dim);
  const json::value* head_dim = keys.Find("mamba_d_head");
  if (head_dim && *head_dim != "auto") {
    c.mamba_head_dim = keys.RequiredInt("mamba_d_head");
  } else {
    const double width = inner / static_cast<double>(std::max<int64_t>(c.mamba_heads, 1));
    if (!(width >= 1 && width <= 0x1p24) || width != std::floor(width))
      keys.Fail("mamba_n_heads", fmt::format("a divisor of mamba_expand · hidden_size = {}", inner));
    c.mamba_head_dim = static_cast<int64_t>(width);
  }
  const bool used = c.Count(BlockKind::kMamba2) > 0;
  if (used && static_cast<double>(c.mamba_heads) * static_cast<double>(c.mamba_head_dim) != std::floor(inner))
    throw Error("{}: mamba_n_heads · mamba_d_head is {} · {}; expected mamba_expand · hidden_size = {}", keys.where(), c.mamba_heads, c.mamba_head_dim, inner);
}

// Which dims of a head rotate. transformers 5 reads rope_parameters; the converter of mamba_ssm checkpoints writes attn_rotary_emb, the trained number of dims,
// which vLLM reads; transformers 4 writes a constant partial_rotary_factor whatever the model is, so that one counts last.
int64_t ParseRotaryDims(const JsonKeys& keys, const std::optional<JsonKeys>& rope, int64_t head_dim) {
  const auto dims = [&](const JsonKeys& in, double factor) {
    if (!(factor >= 0 && factor <= 1)) in.Fail("partial_rotary_factor", "0 to 1");
    return static_cast<int64_t>(factor * static_cast<double>(head_dim));
  };
  if (rope)
    if (const auto factor = rope->Number("partial_rotary_factor")) return dims(*rope, *factor);
  if (const auto rotary = keys.Int("attn_rotary_emb")) return *rotary;
  return dims(keys, keys.Number("partial_rotary_factor").value_or(kDefaultRotaryFactor));
}

void ParseAttention(const JsonKeys& keys, Config& c) {
  c.heads = keys.Int("num_attention_heads").value_or(32);
  // null means as many as query heads; absent is the class default.
  c.kv_heads = keys.object().contains("num_key_value_heads") ? keys.Int("num_key_value_heads").value_or(c.heads) : 8;
  c.attention_bias = keys.Bool("attention_bias").value_or(false);
  const bool used = c.Count(BlockKind::kAttention) > 0;
  if (const auto head_dim = keys.Int("head_dim"))
    c.head_dim = *head_dim;
  else if (c.heads > 0 && c.dim % c.heads == 0)
    c.head_dim = c.dim / c.heads;
  else if (used)
    keys.Fail("num_attention_heads", fmt::format("a divisor of hidden_size = {}", c.dim));
  if (used && (c.head_dim < 1 || c.head_dim > 1 << 24)) keys.Fail("head_dim", "a plausible size");

  const auto rope = keys.Object("rope_parameters");
  for (const auto& scaling : {rope, keys.Object("rope_scaling")}) {
    if (!scaling) continue;
    for (const char* key : {"rope_type", "type"})
      if (scaling->Text(key).value_or("default") != "default") scaling->Fail(key, "\"default\": no other scaling of positions is built");
  }
  c.rope_theta = rope && rope->Number("rope_theta") ? *rope->Number("rope_theta") : keys.Number("rope_theta").value_or(10000);
  c.rope_dims = ParseRotaryDims(keys, rope, c.head_dim);
}

std::optional<int32_t> TokenId(const JsonKeys& keys, std::string_view key, const json::value& value) {
  const auto id = AsInt(value);
  if (!id || *id < -1 || *id > INT32_MAX) keys.Fail(key, "a token id, a list of them, or null");
  if (*id == -1) return {};  // an old spelling of none
  return static_cast<int32_t>(*id);
}

}  // namespace

void ParseTokenIds(const JsonKeys& keys, Config& c) {
  if (const json::value* bos = keys.Find("bos_token_id")) c.bos = TokenId(keys, "bos_token_id", *bos);
  if (const json::value* pad = keys.Find("pad_token_id")) c.pad = TokenId(keys, "pad_token_id", *pad);
  const json::value* eos = keys.Find("eos_token_id");
  if (!eos) return;
  c.eos.clear();
  const json::array one{*eos};
  for (const json::value& item : eos->is_array() ? eos->get_array() : one)
    if (const auto id = TokenId(keys, "eos_token_id", item)) c.eos.push_back(*id);
}

void ParseDtLimit(const JsonKeys& keys, std::string_view key, Config& c) {
  const json::array* limit = keys.Array(key);
  if (!limit) return;
  if (limit->size() != 2 || !AsNumber((*limit)[0]) || !AsNumber((*limit)[1])) keys.Fail(key, "[low, high]");
  c.dt_min = *AsNumber((*limit)[0]), c.dt_max = *AsNumber((*limit)[1]);
}

json::array DtLimitJson(const Config& c) {
  json::array limit{c.dt_min};
  if (std::isinf(c.dt_max))
    limit.push_back(json::object{{"__float__", "Infinity"}});
  else
    limit.push_back(c.dt_max);
  return limit;
}

const char* TorchName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBf16: return "bfloat16";
    case Dtype::kF16: return "float16";
    default: return "float32";
  }
}

Config ParseHfConfig(const JsonKeys& keys) {
  RefuseWhatIsNotBamba(keys);
  Config c;
  c.blocks = ParseBlocks(keys);
  c.vocab = keys.Int("vocab_size").value_or(128000);
  c.dim = keys.Int("hidden_size").value_or(4096);
  c.ffn = keys.Int("intermediate_size").value_or(14336);
  c.eps = keys.Number("rms_norm_eps").value_or(1e-5);
  c.tied = keys.Bool("tie_word_embeddings").value_or(false);
  c.mlp_bias = keys.Bool("mlp_bias").value_or(false);
  ParseMamba(keys, c);
  ParseAttention(keys, c);
  c.context = keys.Int("max_position_embeddings").value_or(262144);
  c.initializer_range = keys.Number("initializer_range").value_or(0.02);
  c.z_loss = keys.Number("z_loss_coefficient").value_or(0);
  ParseTokenIds(keys, c);
  return c;
}

json::object HfConfigJson(const Config& c, Dtype dtype, const std::string& where) {
  const auto refuse = [&](const char* what) { throw Error("{}: the Hugging Face form of Bamba has no place for {}", where, what); };
  if (c.embedding_multiplier != 1 || c.residual_multiplier != 1 || c.logits_multiplier != 1) refuse("multipliers of embedding, residual stream or logits");
  if (c.attention_multiplier && *c.attention_multiplier != 1 / std::sqrt(static_cast<double>(c.head_dim)))
    refuse("an attention scale (softmax_scale) other than 1/√head_dim");
  json::array attention;
  for (size_t i = 0; i < c.blocks.size(); i++) {
    if ((c.blocks[i] == BlockKind::kSwiGlu) != (i % 2 == 1) || c.blocks.size() % 2 != 0) refuse("layers other than a mixer and an MLP (d_intermediate = 0)");
    if (c.blocks[i] == BlockKind::kAttention) attention.push_back(i / 2);
  }
  // transformers divides by these whether or not a layer uses them.
  const bool mamba = c.Count(BlockKind::kMamba2) > 0 || (c.inner() > 0 && c.inner() % c.dim == 0);
  const int64_t inner = mamba ? c.inner() : c.dim, heads = std::max<int64_t>(c.heads, 1), head_dim = c.heads > 0 ? c.head_dim : c.dim;
  if (inner % c.dim != 0) refuse("a Mamba width that is no multiple of hidden_size (mamba_expand)");
  const double factor = c.heads > 0 ? static_cast<double>(c.rope_dims) / static_cast<double>(c.head_dim) : kDefaultRotaryFactor;

  json::object out{{"architectures", {"BambaForCausalLM"}}, {"model_type", "bamba"}, {"vocab_size", c.vocab}, {"hidden_size", c.dim}};
  out["intermediate_size"] = c.ffn;
  out["num_hidden_layers"] = c.layers();
  out["attn_layer_indices"] = attention;
  out["num_attention_heads"] = heads;
  out["num_key_value_heads"] = std::max<int64_t>(c.kv_heads, 1);
  if (head_dim * heads != c.dim) out["head_dim"] = head_dim;
  out["attention_bias"] = c.attention_bias;
  out["attention_dropout"] = 0.0;
  // Positions in the spellings of the converter (and vLLM), transformers 4 and transformers 5.
  out["attn_rotary_emb"] = c.heads > 0 ? c.rope_dims : head_dim / 2;
  out["partial_rotary_factor"] = factor;
  out["rope_theta"] = c.rope_theta;
  out["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", c.rope_theta}, {"partial_rotary_factor", factor}};
  out["mamba_n_heads"] = mamba ? c.mamba_heads : 1;
  out["mamba_d_head"] = mamba ? c.mamba_head_dim : c.dim;
  out["mamba_d_state"] = c.mamba_state;
  out["mamba_n_groups"] = c.mamba_groups;
  out["mamba_d_conv"] = c.d_conv;
  out["mamba_expand"] = inner / c.dim;
  out["mamba_chunk_size"] = c.mamba_chunk;
  out["mamba_conv_bias"] = c.conv_bias;
  out["mamba_proj_bias"] = c.mamba_bias;
  // The default has no spelling in standard JSON, and absent means it in transformers 4 and 5.
  if (c.dt_min != 0 || !std::isinf(c.dt_max)) out["time_step_limit"] = DtLimitJson(c);
  out["mlp_bias"] = c.mlp_bias;
  out["hidden_act"] = "silu";
  out["rms_norm_eps"] = c.eps;
  out["tie_word_embeddings"] = c.tied;
  if (c.context > 0) out["max_position_embeddings"] = c.context;
  out["initializer_range"] = c.initializer_range;
  out["z_loss_coefficient"] = c.z_loss;
  // null where unknown: transformers would otherwise take 1, 2 and 0, which are no special tokens of Bamba's tokenizer.
  const auto id = [](const std::optional<int32_t>& token) { return token ? json::value(*token) : json::value(nullptr); };
  out["bos_token_id"] = id(c.bos);
  out["eos_token_id"] = c.eos.empty() ? json::value(nullptr) : c.eos.size() == 1 ? json::value(c.eos[0]) : json::value(json::array(c.eos.begin(), c.eos.end()));
  out["pad_token_id"] = id(c.pad);
  out["use_cache"] = true;
  out["torch_dtype"] = TorchName(dtype);
  return out;
}

}  // namespace bamba
