#include "io/checkpoint.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "io/json.h"
#include "io/safetensors.h"
#include "model/params.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

void ExpectSameBytes(const Model& a, const Model& b) {
  Weights wa = a.weights, wb = b.weights;
  const auto pa = Parameters(a.config, wa), pb = Parameters(b.config, wb);
  ASSERT_EQ(pa.size(), pb.size());
  for (size_t i = 0; i < pa.size(); i++) {
    SCOPED_TRACE(pa[i].name);
    ASSERT_EQ(pa[i].name, pb[i].name);
    ASSERT_EQ(pa[i].tensor->dtype(), pb[i].tensor->dtype());
    ASSERT_TRUE(pa[i].tensor->SameShape(*pb[i].tensor)) << pb[i].tensor->ShapeString();
    EXPECT_EQ(0, std::memcmp(pa[i].tensor->data(), pb[i].tensor->data(), pa[i].tensor->bytes()));
  }
  EXPECT_EQ(a.config.tied, b.weights.head.weight.data() == b.weights.embedding.weight.data());
}

// Vectors in f32 and everything else in `dtype`, as trainers keep them. The vector's memory is the model's own.
Model MixedModel(const Config& config, Dtype dtype) {
  Model model = RandomModel(config, 1, dtype), vectors = RandomModel(config, 1, Dtype::kF32);
  auto to = Parameters(model.config, model.weights), from = Parameters(vectors.config, vectors.weights);
  for (size_t i = 0; i < to.size(); i++)
    if (to[i].role == Role::kVector && !to[i].name.ends_with(".bias")) *to[i].tensor = *from[i].tensor;
  model.storage.insert(model.storage.end(), vectors.storage.begin(), vectors.storage.end());
  return model;
}

struct Variant {
  const char* name;
  Config config;
  bool ssm;  // that form can carry it
};

std::vector<Variant> Variants() {
  std::vector<Variant> v{{"hybrid", TinyConfig(3, {1}), true},    {"all Mamba", TinyConfig(2, {}), true}, {"all attention", TinyConfig(2, {0, 1}), true},
                         {"tied", TinyConfig(2, {1}), true},      {"biases", TinyConfig(2, {1}), false},  {"Mamba biases", TinyConfig(2, {0}), true},
                         {"wide heads", TinyConfig(2, {1}), true}};
  v[3].config.tied = true;
  v[4].config.mamba_bias = v[4].config.attention_bias = v[4].config.mlp_bias = true;
  v[5].config.mamba_bias = true, v[5].config.conv_bias = false, v[5].config.d_conv = 2;
  v[6].config.head_dim = 20, v[6].config.rope_dims = 4, v[6].config.vocab = 144;
  return v;
}

TEST(Checkpoint, RoundTripsInEveryDirection) {
  for (const Variant& v : Variants()) {
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      SCOPED_TRACE(std::string(v.name) + " " + Name(dtype));
      TemporaryDirectory d;
      const Model model = MixedModel(v.config, dtype);
      SaveModel(model, d / "hf", {.shard_bytes = 20'000});
      EXPECT_TRUE(fs::exists(d / "hf/model.safetensors.index.json"));
      const Model hf = LoadModel(d / "hf");
      ExpectSameBytes(model, hf);
      EXPECT_EQ(hf.config.head_dim, v.config.head_dim);
      EXPECT_EQ(hf.config.rope_dims, v.config.rope_dims);
      if (!v.ssm) {
        EXPECT_THAT(ErrorOf([&] { SaveModel(hf, d / "ssm", {.form = CheckpointForm::kMambaSsm}); }), HasSubstr("bias"));
        EXPECT_FALSE(fs::exists(d / "ssm"));
        continue;
      }
      SaveModel(hf, d / "ssm", {.form = CheckpointForm::kMambaSsm});
      ExpectSameBytes(model, LoadModel(d / "ssm"));
      SaveModel(LoadModel(d / "ssm"), d / "ssm2", {.form = CheckpointForm::kMambaSsm});
      EXPECT_EQ(ReadFile(d / "ssm/pytorch_model.bin"), ReadFile(d / "ssm2/pytorch_model.bin"));
      SaveModel(LoadModel(d / "ssm"), d / "hf2", {});
      ExpectSameBytes(model, LoadModel(d / "hf2"));
      ExpectSameBytes(model, LoadModel(d / "hf2/model.safetensors"));
    }
  }
}

TEST(Checkpoint, ChangesDtypes) {
  TemporaryDirectory d;
  Model model = RandomModel(TinyConfig(2, {1}), 3);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16}) {
    SaveModel(model, d / Name(dtype), {.dtype = dtype});
    ExpectSameBytes(ConvertModel(model, dtype), LoadModel(d / Name(dtype)));
  }
  model.weights.final_norm.as<float>()[1] = 65520;  // rounds past the largest f16
  EXPECT_THAT(ErrorOf([&] { SaveModel(model, d / "x", {.dtype = Dtype::kF16}); }), HasSubstr("'model.final_layernorm.weight' holds 65520"));
  EXPECT_FALSE(fs::exists(d / "x"));
}

TEST(Checkpoint, LoadsTheGoldensAndKeepsTheirKeys) {
  for (const char* name : {"tiny-a", "tiny-b", "tiny-d"}) {
    TemporaryDirectory d;
    const Model model = LoadModel(DataDirectory(name));
    SaveModel(model, d / "copy", {.carry_from = DataDirectory(name)});
    EXPECT_EQ(ReadFile(d / "copy/config.json"), ReadFile(DataDirectory(name) + "/config.json"));
    EXPECT_EQ(ReadFile(d / "copy/generation_config.json"), ReadFile(DataDirectory(name) + "/generation_config.json"));
    SaveModel(model, d / "half", {.dtype = Dtype::kBf16, .carry_from = DataDirectory(name)});
    json::value before = ParseJson(ReadFile(DataDirectory(name) + "/config.json"), "before"), after = ParseJson(ReadFile(d / "half/config.json"), "after");
    EXPECT_EQ(after.at("dtype"), "bfloat16");
    before.as_object().erase("dtype"), after.as_object().erase("dtype");
    EXPECT_EQ(before, after);
  }
}

TEST(Checkpoint, TheShippedModelLoadsFromItsShards) {
  const std::string path = std::string(BAMBA_SOURCE_DIR) + "/models/mini";
  const Model model = LoadModel(path);
  size_t bytes = 0;
  for (const StoredTensor& t : OpenCheckpoint(path).tensors) bytes += t.bytes;
  EXPECT_EQ(static_cast<size_t>(ParameterCount(model.config)) * sizeof(Bf16), bytes);
  EXPECT_EQ(model.storage.size(), 3u);
}

TEST(Checkpoint, GenerationConfigNamesTheEnds) {
  TemporaryDirectory d;
  SaveModel(RandomModel(TinyConfig(1, {}), 1), d / "m", {});
  EXPECT_TRUE(LoadConfig(d / "m").eos.empty());
  WriteFile(d / "m/generation_config.json", R"({"eos_token_id": [7, 8], "bos_token_id": 6})");
  EXPECT_EQ(LoadConfig(d / "m").eos, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(LoadConfig(d / "m").bos, 6);
  WriteFile(d / "m/generation_config.json", R"([])");
  EXPECT_THAT(ErrorOf([&] { LoadConfig(d / "m"); }), HasSubstr("generation_config.json"));
}

TEST(Checkpoint, TheOutputAppearsWholeOrNotAtAll) {
  TemporaryDirectory d;
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  for (CheckpointForm form : {CheckpointForm::kHuggingFace, CheckpointForm::kMambaSsm}) {
    const auto give_up = [](int64_t done, int64_t total) {
      if (done > total / 2) throw Error("enough");
    };
    EXPECT_EQ(ErrorOf([&] { SaveModel(model, d / "m", {.form = form, .on_progress = give_up}); }), "enough");
    EXPECT_TRUE(fs::is_empty(d.path()));
  }
  WriteFile(d / "other", "x");
  EXPECT_THAT(ErrorOf([&] { SaveModel(model, d / "other", {}); }), HasSubstr("is a file"));
  fs::create_directory(d / "full");
  WriteFile(d / "full/mine", "x");
  EXPECT_THAT(ErrorOf([&] { SaveModel(model, d / "full", {}); }), HasSubstr("--force"));
  EXPECT_THAT(ErrorOf([&] { SaveModel(model, d / "full", {.replace = true}); }), HasSubstr("no config.json"));
  EXPECT_EQ(ReadFile(d / "full/mine"), "x");
  SaveModel(model, d / "m/", {});
  EXPECT_THAT(ErrorOf([&] { SaveModel(model, d / "m", {}); }), HasSubstr("--force"));
  SaveModel(LoadModel(d / "m"), d / "m", {.form = CheckpointForm::kMambaSsm, .carry_from = d / "m", .replace = true});  // onto itself
  ExpectSameBytes(model, LoadModel(d / "m"));
  EXPECT_FALSE(fs::exists(d / "m/model.safetensors"));
  EXPECT_EQ(std::distance(fs::directory_iterator(d.path()), fs::directory_iterator()), 3);  // m, other and full: nothing of the old model is left
}

// What a killed conversion to the same place left goes with the next.
TEST(Checkpoint, RemovesWhatKilledConversionsLeft) {
  TemporaryDirectory d;
  const pid_t gone = fork();
  if (gone == 0) _exit(0);
  ASSERT_EQ(waitpid(gone, nullptr, 0), gone);
  const std::string left = d / "m.tmp-" + std::to_string(gone), other = d / "n.tmp-" + std::to_string(gone);
  for (const std::string& directory : {left, other}) fs::create_directory(directory), WriteFile(directory + "/model.safetensors", "half");
  SaveModel(RandomModel(TinyConfig(1, {}), 1), d / "m", {});
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(other));
}

// A checkpoint whose tensors `change` has altered.
void Rewrite(const std::string& directory, const std::function<void(std::vector<SafetensorsWriter::Entry>&)>& change) {
  const std::string path = directory + "/model.safetensors";
  std::vector<SafetensorsWriter::Entry> entries;
  const SafetensorsFile file(path);
  for (const StoredTensor& t : file.tensors()) entries.push_back({t.name, *DtypeFromStored(t.dtype), t.shape});
  change(entries);
  SafetensorsWriter writer(path, entries);
  for (const auto& e : writer.entries()) writer.Write(std::string(e.bytes(), '\0').data(), e.bytes());
  writer.Commit();
}

TEST(Checkpoint, NamesTensorsThatDoNotFit) {
  const auto message = [](bool tied, auto change) {
    TemporaryDirectory d;
    Config config = TinyConfig(2, {1});
    config.tied = tied;
    SaveModel(RandomModel(config, 1), d / "m", {});
    Rewrite(d / "m", change);
    const CheckpointReport report = InspectCheckpoint(d / "m");
    EXPECT_EQ(report.missing.size() + report.foreign.size() + report.mismatched.size(), 1u);
    return ErrorOf([&] { LoadModel(d / "m"); });
  };
  using Entries = std::vector<SafetensorsWriter::Entry>;
  EXPECT_THAT(message(false, [](Entries& e) { std::erase_if(e, [](const auto& x) { return x.name == "model.layers.0.mamba.D"; }); }),
              HasSubstr("tensor 'model.layers.0.mamba.D' is missing"));
  EXPECT_THAT(message(false, [](Entries& e) { e.push_back({"model.layers.2.mamba.D", Dtype::kF32, {6}}); }), HasSubstr("'model.layers.2.mamba.D' is no part"));
  EXPECT_THAT(
      message(false,
              [](Entries& e) {
                for (auto& x : e)
                  if (x.name == "model.layers.1.self_attn.k_proj.weight") x.shape[0]--;
              }),
      HasSubstr(
          "model.safetensors: tensor 'model.layers.1.self_attn.k_proj.weight' has dtype F32 and shape [23, 48], its data 4,416 bytes; expected F32, BF16 or "
          "F16 and [24, 48]"));
  EXPECT_THAT(message(false,
                      [](Entries& e) {
                        for (auto& x : e)
                          if (x.name == "model.final_layernorm.weight") x.dtype = Dtype::kI64;
                      }),
              HasSubstr("'model.final_layernorm.weight' has dtype I64"));
  EXPECT_THAT(message(true,
                      [](Entries& e) {
                        e.push_back({"lm_head.weight", Dtype::kF32, {131, 47}});
                      }),
              HasSubstr("lm_head.weight' differs from the embedding"));
}

TEST(Checkpoint, ATiedHeadThatIsTheEmbeddingIsFine) {
  TemporaryDirectory d;
  Config config = TinyConfig(1, {});
  config.tied = true;
  SaveModel(RandomModel(config, 1), d / "m", {});
  Rewrite(d / "m", [](auto& entries) { entries.push_back({"lm_head.weight", Dtype::kF32, {131, 48}}); });  // zeros, as all
  EXPECT_NO_THROW(LoadModel(d / "m"));
}

TEST(Checkpoint, NamesFilesThatAreMissingOrWrong) {
  TemporaryDirectory d;
  const auto message = [&] { return ErrorOf([&] { LoadModel(d / "m"); }); };
  EXPECT_THAT(message(), HasSubstr("m: does not exist"));
  fs::create_directory(d / "m");
  EXPECT_THAT(message(), HasSubstr("m/config.json: does not exist"));
  SaveModel(RandomModel(TinyConfig(2, {1}), 1), d / "m", {.shard_bytes = 50'000});
  const std::string index = d / "m/model.safetensors.index.json", text = ReadFile(index);
  ASSERT_NO_THROW(LoadModel(d / "m"));

  json::value changed = ParseJson(text, index);
  json::object& map = changed.at("weight_map").as_object();
  for (const char* file : {"../secret.safetensors", "/etc/passwd", "", "..", "a\\b"}) {
    map["model.final_layernorm.weight"] = file;
    WriteFile(index, PrettyJson(changed));
    EXPECT_THAT(message(), HasSubstr("weight_map.model.final_layernorm.weight")) << file;
  }
  map["model.final_layernorm.weight"] = "absent.safetensors";
  WriteFile(index, PrettyJson(changed));
  EXPECT_THAT(message(), HasSubstr("absent.safetensors, which is not there"));
  const json::value first = map.begin()->value();
  map["model.final_layernorm.weight"] = map["model.embed_tokens.weight"] = first;
  map["no.such.tensor"] = first;
  WriteFile(index, PrettyJson(changed));
  EXPECT_THAT(message(), HasSubstr("lacks tensor '"));
  WriteFile(index, "{}");
  EXPECT_THAT(message(), HasSubstr("has no weight_map"));

  WriteFile(index, text);
  const std::string last = "model.final_layernorm.weight", shard = d / ("m/" + std::string(ParseJson(text, index).at("weight_map").at(last).as_string()));
  fs::copy_file(shard, d / "m/copy.safetensors");
  changed = ParseJson(text, index);
  changed.at("weight_map").as_object()[last] = "copy.safetensors";
  WriteFile(index, PrettyJson(changed));
  EXPECT_THAT(message(), HasSubstr("expected it once"));
  WriteFile(index, text);
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_THAT(message(), HasSubstr("cut short"));
  for (const auto& item : fs::directory_iterator(d / "m"))
    if (item.path().filename() != "config.json") fs::remove(item);
  EXPECT_THAT(message(), HasSubstr("holds no weights"));
  EXPECT_EQ(LoadConfig(d / "m").vocab, 131);
}

// mamba_ssm rounds the MLP's width up to a multiple of 128 whatever its config says.
TEST(Checkpoint, ReadsTheRoundedWidthOfMambaSsm) {
  TemporaryDirectory d;
  Config config = TinyConfig(2, {1});
  config.ffn = 128;
  const Model model = RandomModel(config, 1);
  SaveModel(model, d / "m", {.form = CheckpointForm::kMambaSsm});
  std::string text = ReadFile(d / "m/config.json");
  text.replace(text.find("128"), 3, "100");
  WriteFile(d / "m/config.json", text);
  EXPECT_EQ(LoadConfig(d / "m").ffn, 128);
  ExpectSameBytes(model, LoadModel(d / "m"));
}

}  // namespace
}  // namespace bamba
