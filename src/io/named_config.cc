#include "io/named_config.h"

#include "io/config_file.h"

namespace bamba {
namespace {

struct Named {
  const char *name, *config_json;
};

constexpr Named kNamed[] = {
    {"bamba-9b", R"({"model_type": "bamba", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "attn_layer_indices": [9, 18, 27], "num_attention_heads": 32, "num_key_value_heads": 8, "attn_rotary_emb": 64, "rope_theta": 10000,
        "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "max_position_embeddings": 4096, "bos_token_id": 128000, "eos_token_id": 128001})"},
    {"mini", R"({"model_type": "bamba", "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12,
        "attn_layer_indices": [4, 9], "num_attention_heads": 4, "num_key_value_heads": 2, "attn_rotary_emb": 32, "rope_theta": 10000,
        "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1})"},
};

}  // namespace

std::vector<std::string> ConfigNames() {
  std::vector<std::string> names;
  for (const Named& named : kNamed) names.push_back(named.name);
  return names;
}

std::optional<Config> NamedConfig(std::string_view name) {
  for (const Named& named : kNamed)
    if (name == named.name) return ParseConfig(named.config_json, named.name).config;
  return std::nullopt;
}

}  // namespace bamba
