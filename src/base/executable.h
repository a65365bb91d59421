#pragma once

#include <string>

namespace bamba {

// The absolute path of the running program's file, symbolic links resolved; empty where the system does not tell.
std::string ExecutablePath();

}  // namespace bamba
