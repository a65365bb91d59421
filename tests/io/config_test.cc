#include <cmath>
#include <cstring>
#include <tuple>

#include "io/config_file.h"
#include "io/json.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

using testing::HasSubstr;

// tiny-b's config.json with keys replaced by JSON values, or removed by "".
std::string With(std::initializer_list<std::pair<const char*, const char*>> changes) {
  json::object object = ParseJson(ReadFile(DataDirectory("tiny-b") + "/config.json"), "tiny-b").as_object();
  for (const auto& [key, value] : changes) {
    if (*value)
      object[key] = ParseJson(value, key);
    else
      object.erase(key);
  }
  return PrettyJson(object);
}

Config Parse(const std::string& text) { return ParseConfig(text, "config.json").config; }
std::string Message(const std::string& text) {
  return ErrorOf([&] { Parse(text); });
}

TEST(HfConfig, ReadsTransformers5) {
  const Config c = Parse(With({}));
  EXPECT_EQ(c.layers(), 5);
  EXPECT_EQ(c.blocks[2], BlockKind::kAttention);
  EXPECT_EQ(c.blocks[6], BlockKind::kAttention);
  EXPECT_EQ(c.Count(BlockKind::kAttention), 2);
  EXPECT_EQ(c.Count(BlockKind::kSwiGlu), 5);
  EXPECT_EQ(c.mamba_heads, 12);
  EXPECT_EQ(c.mamba_groups, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rope_dims, 8);
  EXPECT_EQ(c.dt_min, 0);
  EXPECT_TRUE(std::isinf(c.dt_max));
  EXPECT_EQ(c.bos, 1);
  EXPECT_EQ(c.eos, std::vector<int32_t>{2});
}

TEST(HfConfig, EverySpellingOfPositions) {
  EXPECT_EQ(Parse(With({{"rope_parameters", ""}, {"rope_theta", "500000.0"}})).rope_theta, 500000);
  EXPECT_EQ(Parse(With({{"rope_parameters", ""}})).rope_theta, 10000);
  EXPECT_EQ(Parse(With({{"rope_parameters", R"({"rope_theta": 7, "rope_type": "default"})"}, {"rope_theta", "5"}})).rope_theta, 7);
  EXPECT_EQ(Parse(With({{"rope_parameters", ""}})).rope_dims, 8);  // half of the head
  EXPECT_EQ(Parse(With({{"rope_parameters", ""}, {"partial_rotary_factor", "0.25"}})).rope_dims, 4);
  EXPECT_EQ(Parse(With({{"rope_parameters", ""}, {"partial_rotary_factor", "0.5"}, {"attn_rotary_emb", "16"}})).rope_dims, 16);
  EXPECT_EQ(Parse(With({{"attn_rotary_emb", "16"}})).rope_dims, 8);  // transformers 5's own key says half
  EXPECT_EQ(Parse(With({{"head_dim", "32"}})).rope_dims, 16);
  EXPECT_EQ(Parse(With({{"head_dim", "null"}})).head_dim, 16);
  EXPECT_EQ(Parse(With({{"rope_scaling", "null"}})).rope_dims, 8);
  EXPECT_EQ(Parse(With({{"rope_scaling", R"({"type": "default"})"}})).rope_dims, 8);
}

TEST(HfConfig, EverySpellingOfTheRest) {
  for (const char* none : {"null", "[]", ""}) EXPECT_EQ(Parse(With({{"attn_layer_indices", none}})).Count(BlockKind::kAttention), 0) << none;
  for (const char* key : {"layers_block_type", "layer_types"}) {
    const Config c = Parse(With({{"attn_layer_indices", ""}, {key, R"(["mamba","attention","mamba","full_attention","linear_attention"])"}}));
    EXPECT_EQ(c.blocks, Parse(With({})).blocks);
  }
  for (const char* limit : {"[0.0, Infinity]", "[0, {\"__float__\": \"Infinity\"}]", "null", ""}) {
    const Config c = Parse(With({{"time_step_limit", limit}}));
    EXPECT_TRUE(c.dt_min == 0 && std::isinf(c.dt_max)) << limit;
  }
  EXPECT_EQ(Parse(With({{"time_step_limit", "[0.001, 0.1]"}})).dt_max, 0.1);
  for (const char* automatic : {"\"auto\"", "null", ""}) EXPECT_EQ(Parse(With({{"mamba_d_head", automatic}})).mamba_head_dim, 16) << automatic;
  EXPECT_EQ(Parse(With({{"eos_token_id", "[5, 9]"}})).eos, (std::vector<int32_t>{5, 9}));
  EXPECT_TRUE(Parse(With({{"eos_token_id", "null"}})).eos.empty());
  EXPECT_FALSE(Parse(With({{"bos_token_id", "null"}})).bos);
  EXPECT_FALSE(Parse(With({{"pad_token_id", "-1"}})).pad);
  EXPECT_EQ(Parse(With({{"num_key_value_heads", "null"}})).kv_heads, 6);
  EXPECT_EQ(Parse(With({{"mamba_d_state", ""}})).mamba_state, 256);  // the class default
  EXPECT_EQ(Parse(With({{"model_type", ""}})).vocab, 1000);          // architectures names it
  EXPECT_NO_THROW(Parse(With({{"some_future_key", "{\"a\": [NaN]}"}, {"sliding_window", "null"}})));
}

TEST(HfConfig, RefusesByName) {
  struct {
    const char *key, *value, *message;
  } const cases[] = {
      {"model_type", "\"llama\"", "model_type is \"llama\""},
      {"hidden_act", "\"gelu\"", "hidden_act"},
      {"quantization_config", "{}", "quantization_config"},
      {"rope_scaling", R"({"rope_type": "yarn", "factor": 4})", "rope_scaling.rope_type is \"yarn\""},
      {"rope_parameters", R"({"rope_type": "linear", "rope_theta": 1e4})", "rope_parameters.rope_type"},
      {"rope_parameters", R"({"partial_rotary_factor": 1.5})", "rope_parameters.partial_rotary_factor"},
      {"sliding_window", "4096", "sliding_window"},
      {"num_local_experts", "8", "num_local_experts"},
      {"logits_scaling", "8.0", "logits_scaling"},
      {"attn_layer_indices", "[5]", "attn_layer_indices"},
      {"attn_layer_indices", "[-1]", "attn_layer_indices"},
      {"attn_layer_indices", "3", "attn_layer_indices is 3; expected a list"},
      {"layers_block_type", R"(["mamba"])", "layers_block_type"},
      {"layers_block_type", R"(["mamba","mamba","mamba","mamba","mamba"])", "layers_block_type"},
      {"layers_block_type", R"(["moe","attention","mamba","attention","mamba"])", "layers_block_type"},
      {"num_hidden_layers", "0", "num_hidden_layers"},
      {"num_hidden_layers", "1000000000000", "num_hidden_layers"},
      {"vocab_size", "0", "vocab_size"},
      {"vocab_size", "1.5", "vocab_size"},
      {"vocab_size", "1e300", "vocab_size"},
      {"vocab_size", "\"many\"", "vocab_size is \"many\""},
      {"hidden_size", "9223372036854775807", "hidden_size"},
      {"hidden_size", "-96", "hidden_size"},
      {"intermediate_size", "0", "intermediate_size"},
      {"num_attention_heads", "7", "num_attention_heads"},
      {"num_attention_heads", "0", "num_attention_heads"},
      {"num_key_value_heads", "4", "num_key_value_heads"},
      {"num_key_value_heads", "0", "num_key_value_heads"},
      {"head_dim", "9223372036854775807", "head_dim"},
      {"mamba_n_heads", "11", "mamba_n_heads"},
      {"mamba_n_heads", "0", "mamba_n_heads"},
      {"mamba_n_groups", "5", "mamba_n_groups"},
      {"mamba_d_head", "\"wide\"", "mamba_d_head"},
      {"mamba_d_head", "17", "mamba_d_head"},
      {"mamba_d_state", "0", "mamba_d_state"},
      {"mamba_d_conv", "0", "mamba_d_conv"},
      {"mamba_expand", "3", "mamba_expand"},
      {"rms_norm_eps", "-1e-5", "rms_norm_eps"},
      {"rms_norm_eps", "NaN", "rms_norm_eps"},
      {"time_step_limit", "[0.1, 0.01]", "time_step_limit"},
      {"time_step_limit", "[0.1]", "time_step_limit"},
      {"time_step_limit", "[NaN, Infinity]", "time_step_limit"},
      {"eos_token_id", "[1, \"a\"]", "eos_token_id"},
      {"bos_token_id", "4294967296", "bos_token_id"},
      {"tie_word_embeddings", "\"yes\"", "tie_word_embeddings"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.key) + " = " + c.value);
    const std::string message = Message(With({{c.key, c.value}}));
    EXPECT_THAT(message, HasSubstr(c.message));
    EXPECT_THAT(message, testing::StartsWith("config.json: "));
  }
  EXPECT_THAT(Message(With({{"rope_parameters", ""}, {"attn_rotary_emb", "9"}})), HasSubstr("9 rotated dims"));
  EXPECT_THAT(Message("[1]"), HasSubstr("no JSON object"));
  EXPECT_THAT(Message("{\"model_type\": \"bamba\", \"a\": 1, \"a\": 2}"), HasSubstr("twice"));
  EXPECT_THAT(Message("{}"), HasSubstr("model_type"));
}

TEST(Json, PythonWordsOnlyOutsideOfStrings) {
  const json::value v = ParseJson(R"({"NaN": "Infinity: \" NaN", "a\\": [-Infinity, NaN, Infinity]})", "x");
  EXPECT_EQ(v.at("NaN").as_string(), "Infinity: \" NaN");
  EXPECT_EQ(AsNumber(v.at("a\\").at(0)), -INFINITY);
  EXPECT_TRUE(std::isnan(*AsNumber(v.at("a\\").at(1))));
  EXPECT_EQ(ParseJson(PrettyJson(v), "x"), v);
  EXPECT_THAT(PrettyJson(v), HasSubstr("-Infinity,"));
  EXPECT_THROW(ParseJson("[Infinityx]", "x"), Error);
  EXPECT_THROW(ParseJson("[nan]", "x"), Error);
}

// Both forms say again what they were told, for numbers other than the defaults.
TEST(Config, WrittenConfigsComeBack) {
  Config c = TinyConfig(5, {1, 4});
  c.d_conv = 3, c.conv_bias = false, c.mamba_bias = true, c.mamba_chunk = 64;
  c.dt_min = 0.01, c.dt_max = 5, c.rope_theta = 12345.5, c.tied = true, c.bos = 3, c.eos = {4, 5};
  const auto numbers = [](const Config& k) {
    return std::tuple(std::tuple(k.vocab, k.dim, k.ffn, k.tied, k.mamba_heads, k.mamba_head_dim, k.mamba_state, k.mamba_groups),
                      std::tuple(k.d_conv, k.conv_bias, k.mamba_bias, k.mamba_chunk, k.dt_min, k.dt_max),
                      std::tuple(k.heads, k.kv_heads, k.head_dim, k.rope_dims, k.rope_theta, k.blocks));
  };
  for (CheckpointForm form : {CheckpointForm::kHuggingFace, CheckpointForm::kMambaSsm}) {
    const ConfigFile back = ParseConfig(FormatConfig(c, form, Dtype::kBf16, "out"), "out");
    EXPECT_EQ(back.form, form);
    EXPECT_EQ(back.vocab_rows, form == CheckpointForm::kMambaSsm ? 144 : 131);
    EXPECT_TRUE(numbers(back.config) == numbers(c)) << Name(form);
    const bool has_ids = form == CheckpointForm::kHuggingFace;  // mamba_ssm leaves them to the tokenizer
    EXPECT_EQ(back.config.bos, has_ids ? c.bos : std::nullopt);
    EXPECT_EQ(back.config.eos, has_ids ? c.eos : std::vector<int32_t>{});
  }
}

TEST(SsmConfig, RefusesWhatItCannotCarry) {
  const auto message = [](auto change) {
    Config c = TinyConfig(2, {1});
    change(c);
    return ErrorOf([&] { FormatConfig(c, CheckpointForm::kMambaSsm, Dtype::kF32, "out"); });
  };
  EXPECT_THAT(message([](Config& c) { c.eps = 1e-6; }), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(message([](Config& c) { c.mlp_bias = true; }), HasSubstr("mlp_bias"));
  EXPECT_THAT(message([](Config& c) { c.attention_bias = true; }), HasSubstr("attention_bias"));
  EXPECT_THAT(message([](Config& c) { c.logits_multiplier = 2; }), HasSubstr("logits_multiplier"));
}

constexpr const char* kSsm = R"({"d_model": 96, "d_intermediate": 128, "n_layer": 3, "vocab_size": 1000,
  "ssm_cfg": {"layer": "Mamba2", "headdim": 32}, "attn_layer_idx": [1], "tie_embeddings": false,
  "attn_cfg": {"causal": true, "d_conv": 0, "head_dim": 16, "num_heads": 6, "num_heads_kv": 2, "rotary_emb_dim": 8}})";

TEST(SsmConfig, ReadsTheDefaultsOfItsClasses) {
  const ConfigFile file = ParseConfig(kSsm, "x");
  const Config& c = file.config;
  EXPECT_EQ(file.form, CheckpointForm::kMambaSsm);
  EXPECT_EQ(file.vocab_rows, 1000);  // a multiple of 8 already
  EXPECT_EQ(std::tuple(c.mamba_heads, c.mamba_head_dim, c.mamba_state, c.mamba_groups, c.d_conv), std::tuple(6, 32, 128, 1, 4));
  EXPECT_TRUE(c.conv_bias && !c.mamba_bias && !c.tied);
  EXPECT_EQ(c.eps, 1e-5);
}

TEST(SsmConfig, RefusesByName) {
  const auto message = [](const char* from, const char* to) {
    std::string text = kSsm;
    text.replace(text.find(from), std::strlen(from), to);
    return Message(text);
  };
  EXPECT_THAT(message("\"layer\": \"Mamba2\", ", ""), HasSubstr("ssm_cfg.layer"));
  EXPECT_THAT(message("\"headdim\": 32", "\"headdim\": 7"), HasSubstr("ssm_cfg.headdim"));
  EXPECT_THAT(message("\"headdim\": 32", "\"headdim\": 32, \"rmsnorm\": false"), HasSubstr("ssm_cfg.rmsnorm"));
  EXPECT_THAT(message("\"headdim\": 32", "\"headdim\": 32, \"novelty\": 1"), HasSubstr("ssm_cfg.novelty"));
  EXPECT_THAT(message("\"causal\": true, ", ""), HasSubstr("attn_cfg.causal"));
  EXPECT_THAT(message("\"causal\": true", "\"causal\": true, \"qkv_proj_bias\": true"), HasSubstr("attn_cfg.qkv_proj_bias"));
  EXPECT_THAT(message("\"d_conv\": 0", "\"d_conv\": 4"), HasSubstr("attn_cfg.d_conv"));
  EXPECT_THAT(message("[1]", "[3]"), HasSubstr("attn_layer_idx"));
  EXPECT_THAT(message("\"n_layer\": 3", "\"n_layer\": 1e12"), HasSubstr("n_layer"));
}

}  // namespace
}  // namespace bamba
