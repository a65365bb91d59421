#pragma once

#include <string>

namespace bamba::cli {

// The directory of the model to use where the command line names none: $BAMBA_MODEL; share/bamba/models/mini beside the installed program's bin;
// models/mini in a directory above the program, which is where it lies for a program in its build tree. Throws Error where there is none.
std::string DefaultModel();

}  // namespace bamba::cli
