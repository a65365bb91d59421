#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace bamba::cli {

// The directory of the model to use where the command line names none: $BAMBA_MODEL; share/bamba/models/mini beside the installed program's bin;
// models/mini in a directory above the program, which is where it lies for a program in its build tree. Throws Error where there is none.
std::string DefaultModel();

// The directory of a model that may be named by its weights file.
std::string ModelFolder(const std::string& model);

// What a model is called: the name of its directory.
std::string ModelName(const std::string& model);

// Adds the argument MODEL, which may be left out; what it names goes to `model`, else that stays empty.
void AddModel(CLI::App& verb, std::string& model);

}  // namespace bamba::cli
