#include "io/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "base/units.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/torch_file.h"
#include "model/params.h"

namespace bamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeightFiles[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
                                        "consolidated.00.pth"};

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool IsDirectory(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

struct Paths {
  fs::path config, weights;  // weights: empty where there are none
};

void ExpectExists(const fs::path& path, std::string_view expected) {
  std::error_code fault;
  if (!fs::exists(path, fault)) throw Error("{}: {}; expected {}", path.string(), fault ? "cannot be opened: " + fault.message() : "does not exist", expected);
}

Paths Locate(const std::string& path) {
  ExpectExists(path, "a model's directory or its .safetensors file");
  const bool directory = IsDirectory(path);
  const fs::path folder = directory ? fs::path(path) : fs::path(path).parent_path();
  Paths paths{folder / "config.json", directory ? fs::path() : fs::path(path)};
  ExpectExists(paths.config, directory ? "a model's config.json in its directory" : "a model's config.json beside its weights");
  for (const char* name : kWeightFiles)
    if (paths.weights.empty() && Exists(folder / name)) paths.weights = folder / name;
  return paths;
}

// Wrappers of training leave their names in those of parameters.
std::string WithoutWrappers(std::string name) {
  for (std::string_view wrapper : {"_orig_mod.", "_fsdp_wrapped_module."})
    for (size_t at; (at = name.find(wrapper)) != std::string::npos;) name.erase(at, wrapper.size());
  return name;
}

void AddFile(Checkpoint& checkpoint, const std::string& path) {
  std::vector<StoredTensor> tensors;
  if (path.ends_with(".safetensors")) {
    auto file = std::make_shared<SafetensorsFile>(path);
    tensors = file->tensors();
    checkpoint.storage.push_back(std::move(file));
  } else {
    auto file = std::make_shared<MappedFile>(path);
    tensors = ParseTorchFile(file->bytes(), path);
    for (StoredTensor& t : tensors) t.name = WithoutWrappers(std::move(t.name));
    checkpoint.storage.push_back(std::move(file));
  }
  checkpoint.files++;
  checkpoint.tensors.insert(checkpoint.tensors.end(), std::make_move_iterator(tensors.begin()), std::make_move_iterator(tensors.end()));
}

// {"weight_map": {tensor: file beside the index}}
void AddShards(Checkpoint& checkpoint, const fs::path& index) {
  const std::string where = index.string();
  const json::value value = ParseJson(ReadFile(where), where);
  if (!value.is_object()) throw Error("{}: is no JSON object; expected an index of shards", where);
  const auto map = JsonKeys(value.get_object(), where).Object("weight_map");
  if (!map || map->object().empty()) throw Error("{}: has no weight_map; expected an index of shards", where);
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& member : map->object()) {
    const std::string file = map->Text(member.key()).value_or("");
    // A plain name only: an index must not reach outside of its directory.
    if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string("/\\\0", 3)) != std::string::npos)
      map->Fail(member.key(), "the name of a file beside the index");
    shards[file].insert(member.key());
  }
  for (const auto& [file, names] : shards) {
    const fs::path path = index.parent_path() / file;
    if (!Exists(path)) throw Error("{}: names the shard {}, which is not there; download it too", where, file);
    const size_t first = checkpoint.tensors.size();
    AddFile(checkpoint, path.string());
    std::set<std::string> held;
    for (size_t i = first; i < checkpoint.tensors.size(); i++) held.insert(checkpoint.tensors[i].name);
    for (const std::string& name : names)
      if (!held.contains(WithoutWrappers(name))) throw Error("{}: lacks tensor '{}', which {} places there", path.string(), name, where);
  }
}

// The stored tensors by name.
using ByName = std::unordered_map<std::string, const StoredTensor*>;

ByName IndexNames(const Checkpoint& checkpoint) {
  ByName names;
  for (const StoredTensor& t : checkpoint.tensors)
    if (const auto [it, fresh] = names.emplace(t.name, &t); !fresh)
      throw Error("{}: tensor '{}' is in {} too; expected it once", t.file, t.name, it->second->file);
  return names;
}

ConfigFile ReadConfig(const fs::path& path) {
  const std::string where = path.string();
  ConfigFile file = ParseConfig(ReadFile(where), where);
  if (const fs::path generation = path.parent_path() / "generation_config.json"; Exists(generation))
    ParseGenerationConfig(ReadFile(generation.string()), generation.string(), file.config);
  return file;
}

Checkpoint Open(const std::string& path, const Paths& paths) {
  if (paths.weights.empty()) throw Error("{}: holds no weights; expected model.safetensors, its index of shards, or pytorch_model.bin", path);
  if (paths.weights.extension() == ".json" && !paths.weights.string().ends_with(".index.json"))
    throw Error("{}: is no weights file; expected a model's directory, or its weights beside config.json", path);
  Checkpoint checkpoint{.config_file = ReadConfig(paths.config), .config_path = paths.config.string(), .weights_path = paths.weights.string()};
  if (checkpoint.weights_path.ends_with(".index.json"))
    AddShards(checkpoint, paths.weights);
  else
    AddFile(checkpoint, checkpoint.weights_path);
  // A genuine mamba_ssm model of such a width has trained the rounded one.
  Config& c = checkpoint.config_file.config;
  const int64_t rounded = (c.ffn + kSsmMlpMultiple - 1) / kSsmMlpMultiple * kSsmMlpMultiple;
  if (checkpoint.config_file.form == CheckpointForm::kMambaSsm && rounded != c.ffn)
    for (const StoredTensor& t : checkpoint.tensors)
      if (t.name.ends_with(".mlp.fc1.weight") && t.shape.size() == 2 && t.shape[0] == 2 * rounded) c.ffn = rounded;
  return checkpoint;
}

// The tensor of the checkpoint that a parameter is in, and its first row there.
struct Source {
  const std::string& name;
  int64_t row;
};
Source SourceOf(const Param& p, CheckpointForm form) { return form == CheckpointForm::kHuggingFace ? Source{p.name, 0} : Source{p.ssm_name, p.ssm_row}; }

class Matcher {
 public:
  Matcher(CheckpointReport& report, Model& model)
      : report_(report), file_(report.checkpoint.config_file), names_(IndexNames(report.checkpoint)), model_(model) {}

  void Match() {
    const auto params = Parameters(model_.config, model_.weights);
    std::unordered_map<std::string, int64_t> rows;  // of each stored tensor: mamba_ssm joins several parameters in one
    for (const Param& p : params) {
      const Source s = SourceOf(p, file_.form);
      rows[s.name] = std::max(rows[s.name], s.row + p.shape[0]);
    }
    for (const Param& p : params) MatchOne(p, rows.at(SourceOf(p, file_.form).name));
    if (model_.config.tied) MatchTiedHead();
    TieHead(model_.config, model_.weights);
    for (const StoredTensor& t : report_.checkpoint.tensors)
      if (!used_.contains(t.name)) report_.foreign.push_back(t.name);
  }

 private:
  void MatchOne(const Param& p, int64_t rows) {
    const Source source = SourceOf(p, file_.form);
    const auto it = names_.find(source.name);
    if (it == names_.end()) {
      if (used_.insert(source.name).second) report_.missing.push_back(source.name);
      return;
    }
    const StoredTensor& t = *it->second;
    const bool first = used_.insert(t.name).second;
    std::vector<int64_t> due = p.shape;
    due[0] = rows;
    if (p.role == Role::kEmbedding && t.shape.size() == due.size() && t.shape[0] == file_.vocab_rows) due[0] = file_.vocab_rows;
    const bool weights = t.tensor && (t.tensor.dtype() == Dtype::kF32 || t.tensor.dtype() == Dtype::kBf16 || t.tensor.dtype() == Dtype::kF16);
    if (t.shape != due || !weights) {
      if (first)
        report_.mismatched.push_back(fmt::format("{}: tensor '{}' has dtype {} and shape {}, its data {} bytes; expected F32, BF16 or F16 and {}", t.file,
                                                 t.name, t.dtype, ShapeString(t.shape), Thousands(static_cast<int64_t>(t.bytes)), ShapeString(due)));
      return;
    }
    const size_t row_bytes = t.bytes / static_cast<size_t>(due[0]);
    *p.tensor = Tensor(static_cast<char*>(t.tensor.data()) + row_bytes * static_cast<size_t>(source.row), t.tensor.dtype(), p.shape.data(),
                       static_cast<int>(p.shape.size()));
  }

  void MatchTiedHead() {
    const auto it = names_.find("lm_head.weight");
    const Tensor& embedding = model_.weights.embedding.weight;
    if (it == names_.end() || !embedding) return;
    const StoredTensor& head = *it->second;
    used_.insert(head.name);
    const bool same = head.tensor && head.tensor.dtype() == embedding.dtype() && head.bytes >= embedding.bytes() &&
                      (head.tensor.data() == embedding.data() || std::memcmp(head.tensor.data(), embedding.data(), embedding.bytes()) == 0);
    if (!same)
      report_.mismatched.push_back(
          "tensor 'lm_head.weight' differs from the embedding, to which the config ties it; expected the same numbers or no such tensor");
  }

  CheckpointReport& report_;
  const ConfigFile& file_;
  ByName names_;
  Model& model_;
  std::set<std::string> used_;
};

std::string AndMore(const std::vector<std::string>& names) { return names.size() > 1 ? fmt::format(" (and {} more)", names.size() - 1) : ""; }

}  // namespace

Checkpoint OpenCheckpoint(const std::string& path) { return Open(path, Locate(path)); }

Config LoadConfig(const std::string& path) {
  const Paths paths = Locate(path);
  ConfigFile file = ReadConfig(paths.config);
  const bool width_is_in_weights = file.form == CheckpointForm::kMambaSsm && file.config.ffn % kSsmMlpMultiple != 0 && !paths.weights.empty();
  return width_is_in_weights ? Open(path, paths).config_file.config : file.config;
}

CheckpointReport InspectCheckpoint(const std::string& path) {
  CheckpointReport report{.checkpoint = OpenCheckpoint(path)};
  const Config& config = report.checkpoint.config_file.config;
  Model model{.config = config, .weights = EmptyWeights(config)};
  Matcher(report, model).Match();
  return report;
}

Model LoadModel(const std::string& path) {
  CheckpointReport report{.checkpoint = OpenCheckpoint(path)};
  Checkpoint& checkpoint = report.checkpoint;
  Model model{.config = checkpoint.config_file.config, .weights = EmptyWeights(checkpoint.config_file.config)};
  Matcher(report, model).Match();
  if (!report.mismatched.empty()) throw Error("{} (by {}){}", report.mismatched[0], checkpoint.config_path, AndMore(report.mismatched));
  if (!report.missing.empty())
    throw Error("{}: tensor '{}' is missing{}; expected by {}. Download the model again, or correct its config", checkpoint.weights_path, report.missing[0],
                AndMore(report.missing), checkpoint.config_path);
  if (!report.foreign.empty())
    throw Error("{}: tensor '{}' is no part of the model that {} describes{}; `bamba info` lists them all", checkpoint.weights_path, report.foreign[0],
                checkpoint.config_path, AndMore(report.foreign));
  model.storage = std::move(checkpoint.storage);
  return model;
}

}  // namespace bamba
