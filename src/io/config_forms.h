#pragma once

#include "io/config_file.h"
#include "io/json.h"

// The two forms behind config_file.h.
namespace bamba {

Config ParseHfConfig(const JsonKeys& keys);
json::object HfConfigJson(const Config& config, Dtype dtype, const std::string& where);
// bos, eos (a number or a list) and pad, where present.
void ParseTokenIds(const JsonKeys& keys, Config& config);
const char* TorchName(Dtype dtype);  // "bfloat16"

ConfigFile ParseSsmConfig(const JsonKeys& keys);
json::object SsmConfigJson(const Config& config, const std::string& where);

// [low, high], or null: no limit.
void ParseDtLimit(const JsonKeys& keys, std::string_view key, Config& config);
json::array DtLimitJson(const Config& config);

// mamba_ssm rounds the vocabulary up to a multiple of this; what IBM's training used.
inline constexpr int64_t kSsmVocabMultiple = 16;

}  // namespace bamba
