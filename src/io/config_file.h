#pragma once

#include <string>
#include <string_view>

#include "model/config.h"

namespace bamba {

// How a checkpoint names its numbers and its tensors.
enum class CheckpointForm : uint8_t { kHuggingFace, kMambaSsm };
const char* Name(CheckpointForm form);  // "hf", "mamba_ssm"

// A config.json.
struct ConfigFile {
  CheckpointForm form = CheckpointForm::kHuggingFace;
  Config config;           // valid in the sense of Validate()
  int64_t vocab_rows = 0;  // of the embedding and the head in the file: mamba_ssm pads the vocabulary
};

// mamba_ssm's own MLP rounds its width up to a multiple of this, whatever its config says.
inline constexpr int64_t kSsmMlpMultiple = 128;

// Reads either form: one with d_model and no model_type is mamba_ssm's. What would change results and isn't built is refused by name; other unknown keys are
// ignored, except among mamba_ssm's keyword arguments. Throws Error naming `where` and the key.
ConfigFile ParseConfig(std::string_view text, const std::string& where);

// The ids in a generation_config.json replace those of `config`: they are what transformers generates with.
void ParseGenerationConfig(std::string_view text, const std::string& where, Config& config);

// The text of a config.json for weights mostly in `dtype`. What the form cannot carry is refused by name; `where` is the file it is meant for.
std::string FormatConfig(const Config& config, CheckpointForm form, Dtype dtype, const std::string& where);

// The text of a Hugging Face config.json with its dtype replaced and all else kept, keys we do not read included.
std::string ReplaceDtype(std::string_view text, const std::string& where, Dtype dtype);

}  // namespace bamba
