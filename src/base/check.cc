#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace bamba {

void CheckFailed(const char* file, int line, const char* condition, const std::string& detail) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s%s%s\n", file, line, condition, detail.empty() ? "" : ": ", detail.c_str());
  std::abort();
}

}  // namespace bamba
