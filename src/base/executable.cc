#include "base/executable.h"

#include <unistd.h>

#include <array>
#include <climits>

namespace bamba {

std::string ExecutablePath() {
  std::array<char, PATH_MAX> path;
  ssize_t n = readlink("/proc/self/exe", path.data(), path.size());
  return n > 0 && static_cast<size_t>(n) < path.size() ? std::string(path.data(), static_cast<size_t>(n)) : std::string();
}

}  // namespace bamba
