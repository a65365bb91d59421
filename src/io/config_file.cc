#include "io/config_file.h"

#include "base/error.h"
#include "io/config_forms.h"

namespace bamba {

const char* Name(CheckpointForm form) { return form == CheckpointForm::kHuggingFace ? "hf" : "mamba_ssm"; }

ConfigFile ParseConfig(std::string_view text, const std::string& where) {
  const json::value value = ParseJson(text, where);
  if (!value.is_object()) throw Error("{}: is no JSON object; expected a model's config.json", where);
  const JsonKeys keys(value.get_object(), where);
  ConfigFile file;
  if (keys.Find("d_model") && !keys.Find("model_type")) {
    file = ParseSsmConfig(keys);
  } else {
    file.config = ParseHfConfig(keys);
    file.vocab_rows = file.config.vocab;
  }
  Validate(file.config, where);
  return file;
}

void ParseGenerationConfig(std::string_view text, const std::string& where, Config& config) {
  const json::value value = ParseJson(text, where);
  if (!value.is_object()) throw Error("{}: is no JSON object", where);
  ParseTokenIds(JsonKeys(value.get_object(), where), config);
}

std::string FormatConfig(const Config& config, CheckpointForm form, Dtype dtype, const std::string& where) {
  return PrettyJson(form == CheckpointForm::kHuggingFace ? HfConfigJson(config, dtype, where) : SsmConfigJson(config, where));
}

std::string ReplaceDtype(std::string_view text, const std::string& where, Dtype dtype) {
  json::value value = ParseJson(text, where);
  json::object& object = value.as_object();
  const char* key = object.contains("dtype") ? "dtype" : "torch_dtype";
  object[key] = TorchName(dtype);
  return PrettyJson(value);
}

}  // namespace bamba
