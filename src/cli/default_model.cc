#include "cli/default_model.h"

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/executable.h"

namespace bamba::cli {
namespace {

namespace fs = std::filesystem;

bool IsModel(const fs::path& directory) {
  std::error_code ignored;
  return fs::exists(directory / "config.json", ignored);
}

}  // namespace

std::string DefaultModel() {
  // Loading it reports what is wrong with a model that the user chose: no silent second choice.
  if (const char* chosen = std::getenv("BAMBA_MODEL"); chosen && *chosen) return chosen;
  fs::path program = ExecutablePath();
  if (fs::path installed = program.parent_path().parent_path() / "share/bamba/models/mini"; IsModel(installed)) return installed.string();
  for (fs::path above = program.parent_path(); above.has_relative_path(); above = above.parent_path())
    if (IsModel(above / "models/mini")) return (above / "models/mini").string();
  throw Error("no model named, and the one that comes with bamba is not beside {}; name a model's directory, or set BAMBA_MODEL to it", program.string());
}

std::string ModelFolder(const std::string& model) {
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return model;
  const std::string folder = fs::path(model).parent_path().string();
  return folder.empty() ? "." : folder;
}

std::string ModelName(const std::string& model) {
  const auto path = fs::absolute(ModelFolder(model)).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

void AddModel(CLI::App& verb, std::string& model) {
  verb.add_option("MODEL", model, "The model's directory (default: the small one that comes with bamba)")->type_name("MODEL");
}

}  // namespace bamba::cli
