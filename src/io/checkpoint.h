#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/config_file.h"
#include "io/stored_tensor.h"
#include "model/bamba.h"

namespace bamba {

// A model on disk is a directory with config.json and weights, or the path of the weights file beside its config.json. Weights are looked for in this order:
// model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json, consolidated.00.pth.
struct Checkpoint {
  ConfigFile config_file;
  std::string config_path, weights_path;  // weights_path: the index where there is one
  std::vector<StoredTensor> tensors;      // of all files; views into `storage`
  std::vector<std::shared_ptr<const void>> storage;
  size_t files = 0;
};

// Reads config and headers. Throws Error for damaged or missing files, but not for tensors that don't fit the config.
Checkpoint OpenCheckpoint(const std::string& path);

// Alone what config.json and generation_config.json say; weights need not be there.
Config LoadConfig(const std::string& path);

// How the tensors of a checkpoint fit its config; for `bamba info`, which shows what LoadModel refuses.
struct CheckpointReport {
  Checkpoint checkpoint;
  std::vector<std::string> missing, foreign;  // names, as the checkpoint's form spells them
  std::vector<std::string> mismatched;        // "file: tensor 'x' has …; expected …"
};
CheckpointReport InspectCheckpoint(const std::string& path);

// The model, its weights views into the mapped files, each in its own dtype (F32, BF16 or F16). A tied checkpoint may hold the head too if it is the embedding
// to the bit. Throws Error with the name of any tensor that is missing, not the model's, or of another shape.
Model LoadModel(const std::string& path);

struct SaveOptions {
  CheckpointForm form = CheckpointForm::kHuggingFace;
  std::optional<Dtype> dtype;           // of all tensors; each keeps its own where absent
  int64_t shard_bytes = 5'000'000'000;  // of safetensors files; a tensor is never split
  // A model's directory (or ""): files beside its weights come along (tokenizer, generation_config.json, …), and where both are of the Hugging Face form its
  // config.json with the keys that we don't read.
  std::string carry_from;
  bool replace = false;                                          // an existing model in `directory`
  std::function<void(int64_t done, int64_t total)> on_progress;  // bytes of weights; may throw to give up
};
struct SaveSummary {
  int64_t bytes = 0, files = 0;  // of weights
};

// Writes `model` as a directory, which appears whole or not at all. A tensor whose dtype stays has the same bytes. Throws Error for what the form cannot carry,
// values that `dtype` cannot hold, or a directory that is not empty.
SaveSummary SaveModel(const Model& model, const std::string& directory, const SaveOptions& options);

}  // namespace bamba
