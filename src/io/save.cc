#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/mapped_file.h"
#include "io/checkpoint.h"
#include "io/config_forms.h"
#include "io/safetensors.h"
#include "io/torch_file.h"
#include "model/params.h"

namespace bamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{8} << 20;  // between two calls of on_progress

// A tensor to be written: parameters one below the other, then rows of zeros.
struct Planned {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  std::vector<Tensor> parts;
  std::string same_as;  // shares that tensor's bytes

  int64_t bytes() const { return same_as.empty() ? static_cast<int64_t>(*StoredBytes(shape, SizeOf(dtype))) : 0; }
};

std::vector<Planned> Plan(const Model& model, const SaveOptions& options) {
  Weights weights = model.weights;
  std::vector<Param> params = Parameters(model.config, weights);
  const bool ssm = options.form == CheckpointForm::kMambaSsm;
  std::vector<Planned> plan;
  std::map<std::string, std::vector<const Param*>> joined;
  for (const Param& p : params) joined[ssm ? p.ssm_name : p.name].push_back(&p);
  for (const Param& first : params) {
    auto& parts = joined[ssm ? first.ssm_name : first.name];
    if (parts.empty()) continue;  // written with the first of them
    std::sort(parts.begin(), parts.end(), [](const Param* a, const Param* b) { return a->ssm_row < b->ssm_row; });
    Planned& t = plan.emplace_back(Planned{ssm ? first.ssm_name : first.name, options.dtype.value_or(parts[0]->tensor->dtype()), parts[0]->shape});
    t.shape[0] = 0;
    for (const Param* p : parts) {
      CHECK_MSG(*p->tensor && p->tensor->contiguous(), "{} is absent or strided", p->name);
      if (!options.dtype && p->tensor->dtype() != t.dtype)
        throw Error("'{}' is {} and '{}' {}, but the mamba_ssm form joins them in one tensor; name a --dtype for all", parts[0]->name, Name(t.dtype), p->name,
                    Name(p->tensor->dtype()));
      t.parts.push_back(*p->tensor);
      t.shape[0] += p->shape[0];
    }
    if (ssm && first.role == Role::kEmbedding) t.shape[0] = (t.shape[0] + kSsmVocabMultiple - 1) / kSsmVocabMultiple * kSsmVocabMultiple;
    parts.clear();
  }
  // mamba_ssm's state dict has the tied head under both names.
  if (ssm && model.config.tied) plan.push_back({"lm_head.weight", plan[0].dtype, plan[0].shape, {}, plan[0].name});
  return plan;
}

// Streams planned tensors into a writer, converted where the dtype changes.
class Stream {
 public:
  Stream(const SaveOptions& options, int64_t total) : options_(options), total_(total) {}

  template <typename Writer>
  void Copy(const Planned& t, Writer& writer) {
    int64_t left = t.bytes();
    for (const Tensor& part : t.parts) {
      left -= part.size() * static_cast<int64_t>(SizeOf(t.dtype));
      const char* from = static_cast<const char*>(part.data());
      const size_t step = kPieceBytes / sizeof(double), n = static_cast<size_t>(part.size());
      for (size_t i = 0; i < n; i += step) {
        const size_t count = std::min(step, n - i), bytes = count * SizeOf(t.dtype);
        const void* piece = from + i * SizeOf(part.dtype());
        if (part.dtype() != t.dtype) piece = Converted(t, piece, part.dtype(), count);
        writer.Write(piece, bytes);
        Count(bytes);
      }
    }
    const std::string zeros(static_cast<size_t>(left), '\0');
    if (left > 0) writer.Write(zeros.data(), zeros.size());
    Count(zeros.size());
  }

 private:
  const void* Converted(const Planned& t, const void* piece, Dtype from, size_t count) {
    converted_.resize(count * SizeOf(t.dtype));
    Convert(piece, from, converted_.data(), t.dtype, count);
    if (t.dtype == Dtype::kF16) {
      wide_.resize(count);
      Convert(piece, from, wide_.data(), Dtype::kF32, count);
      const auto* half = reinterpret_cast<const F16*>(converted_.data());
      for (size_t i = 0; i < count; i++)
        if (std::isinf(static_cast<float>(half[i])) && !std::isinf(wide_[i]))
          throw Error("tensor '{}' holds {}, which f16 cannot (its largest number is 65504); choose bf16", t.name, wide_[i]);
    }
    return converted_.data();
  }

  void Count(size_t bytes) {
    done_ += static_cast<int64_t>(bytes);
    if (options_.on_progress) options_.on_progress(done_, total_);
  }

  const SaveOptions& options_;
  int64_t total_, done_ = 0;
  std::vector<char> converted_;
  std::vector<float> wide_;
};

int64_t WriteSafetensors(const std::vector<Planned>& plan, const fs::path& folder, int64_t total, const SaveOptions& options) {
  std::vector<std::vector<const Planned*>> shards(1);
  int64_t in_shard = 0;
  for (const Planned& t : plan) {
    if (in_shard > 0 && in_shard > options.shard_bytes - t.bytes()) shards.emplace_back(), in_shard = 0;
    shards.back().push_back(&t);
    in_shard += t.bytes();
  }
  Stream stream(options, total);
  json::object map;
  for (size_t i = 0; i < shards.size(); i++) {
    const std::string name = shards.size() == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<SafetensorsWriter::Entry> entries;
    std::map<std::string, const Planned*> planned;
    for (const Planned* t : shards[i]) {
      entries.push_back({t->name, t->dtype, t->shape});
      planned[t->name] = t;
    }
    SafetensorsWriter writer((folder / name).string(), std::move(entries));
    for (const auto& entry : writer.entries()) {
      map[entry.name] = name;
      stream.Copy(*planned.at(entry.name), writer);
    }
    writer.Commit();
  }
  if (shards.size() > 1) {
    FileWriter index((folder / "model.safetensors.index.json").string());
    index.Write(PrettyJson({{"metadata", {{"total_size", total}}}, {"weight_map", map}}));
    index.Commit();
  }
  return static_cast<int64_t>(shards.size());
}

void WriteTorch(const std::vector<Planned>& plan, const fs::path& folder, int64_t total, const SaveOptions& options) {
  std::vector<TorchWriter::Entry> entries;
  for (const Planned& t : plan) entries.push_back({t.name, t.dtype, t.shape, t.same_as});
  TorchWriter writer((folder / "pytorch_model.bin").string(), std::move(entries));
  Stream stream(options, total);
  for (const Planned& t : plan)
    if (t.same_as.empty()) stream.Copy(t, writer);
  writer.Commit();
}

// What belongs to a model beside its config and weights.
bool ComesAlong(const fs::path& file) {
  const std::string name = file.filename().string(), extension = file.extension().string();
  if (name == "config.json" || name.ends_with(".index.json") || name.starts_with(".")) return false;
  return extension == ".json" || extension == ".txt" || extension == ".md" || extension == ".jinja" || extension == ".model" || name.starts_with("LICENSE");
}

fs::path FolderOf(const std::string& model) { return fs::is_directory(model) ? fs::path(model) : fs::path(model).parent_path(); }

void CarryFiles(const fs::path& from, const fs::path& to) {
  for (const auto& item : fs::directory_iterator(from.empty() ? "." : from)) {
    if (!item.is_regular_file() || !ComesAlong(item.path())) continue;
    FileWriter copy((to / item.path().filename()).string());
    copy.Write(ReadFile(item.path().string()));
    copy.Commit();
  }
}

std::string ConfigText(const Model& model, const SaveOptions& options, const std::string& where) {
  const Dtype dtype = options.dtype.value_or(model.weights.embedding.weight.dtype());
  if (options.form == CheckpointForm::kHuggingFace && !options.carry_from.empty()) {
    const std::string source = (FolderOf(options.carry_from) / "config.json").string(), text = ReadFile(source);
    if (ParseConfig(text, source).form == options.form) return options.dtype ? ReplaceDtype(text, source, dtype) : text;
  }
  return FormatConfig(model.config, options.form, dtype, where);
}

// A directory made under a temporary name beside its own, which it takes in Commit(); removed without.
class NewDirectory {
 public:
  NewDirectory(const std::string& path, bool replace) : path_(fs::path(path).lexically_normal()) {
    if (!path_.has_filename()) path_ = path_.parent_path();
    if (path_.empty() || path_ == "." || path_.filename() == "..") throw Error("{}: cannot be made; name a new directory", path);
    if (fs::exists(path_)) {
      if (!fs::is_directory(path_)) throw Error("{}: is a file; expected the name of a new directory", path);
      const bool empty = fs::is_empty(path_), model = fs::exists(path_ / "config.json");
      if (!empty && !replace) throw Error("{}: is not empty; choose another name, or --force to replace the model there", path);
      if (!empty && !model) throw Error("{}: is not empty and holds no config.json, so it is no model that --force may replace; choose another name", path);
    }
    temporary_ = TemporaryName(path_.string());
    fs::create_directories(temporary_);
  }
  ~NewDirectory() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  const fs::path& temporary() const { return temporary_; }

  // At no moment is there neither the old model nor the new one, where the file system can exchange two names; elsewhere for the time between two renames.
  void Commit() {
    const bool exists = fs::exists(path_);
    if (exists && ExchangeNames(temporary_.string(), path_.string())) return;  // the old one is removed as an unfinished one would be
    fs::path old = temporary_;
    old += "-old";
    if (exists) fs::rename(path_, old);
    try {
      fs::rename(temporary_, path_);
    } catch (...) {
      if (exists) fs::rename(old, path_);
      throw;
    }
    temporary_.clear();
    std::error_code ignored;
    if (exists) fs::remove_all(old, ignored);
  }

 private:
  fs::path path_, temporary_;
};

}  // namespace

SaveSummary SaveModel(const Model& model, const std::string& directory, const SaveOptions& options) {
  try {
    const std::string config = ConfigText(model, options, directory);  // refuses what the form cannot carry before a byte is written
    const std::vector<Planned> plan = Plan(model, options);
    SaveSummary summary{.files = 1};
    for (const Planned& t : plan) summary.bytes += t.bytes();
    NewDirectory target(directory, options.replace);
    if (!options.carry_from.empty()) CarryFiles(FolderOf(options.carry_from), target.temporary());
    FileWriter file((target.temporary() / "config.json").string());
    file.Write(config);
    file.Commit();
    if (options.form == CheckpointForm::kMambaSsm)
      WriteTorch(plan, target.temporary(), summary.bytes, options);
    else
      summary.files = WriteSafetensors(plan, target.temporary(), summary.bytes, options);
    target.Commit();
    return summary;
  } catch (const fs::filesystem_error& e) {
    throw Error("{}: cannot be written: {}", directory, e.code().message());
  }
}

}  // namespace bamba
