#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace bamba {

// Shapes that are known without a file: "bamba-9b" (all its releases have one shape) and "mini", the model that comes along.
std::vector<std::string> ConfigNames();
std::optional<Config> NamedConfig(std::string_view name);  // none where the name is not known

}  // namespace bamba
