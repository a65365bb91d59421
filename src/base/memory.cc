#include "base/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace bamba {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// The number after `key` in a file of "key number" lines; `otherwise` where it is missing.
int64_t Lookup(const char* path, const std::string& key, int64_t otherwise) {
  std::ifstream file(path);
  std::string word;
  int64_t value;
  while (file >> word)
    if (word == key) return file >> value ? value : otherwise;
  return otherwise;
}

int64_t FirstNumber(const char* path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : otherwise;  // "max" is no number: no limit
}

// What a control group leaves: its limit less what it holds, where file cache (mapped weights among it) can be dropped.
int64_t LeftInGroup(const char* limit_file, const char* usage_file, const char* stat_file, const char* cache_key) {
  const int64_t limit = FirstNumber(limit_file, kUnlimited);
  if (limit == kUnlimited) return kUnlimited;
  const int64_t held = FirstNumber(usage_file, 0) - Lookup(stat_file, cache_key, 0);
  return std::max<int64_t>(0, limit - std::max<int64_t>(0, held));
}

}  // namespace

int64_t AvailableMemory() {
  const int64_t kilobytes = Lookup("/proc/meminfo", "MemAvailable:", -1);
  const int64_t system = kilobytes < 0 ? kUnlimited : kilobytes * 1024;
  const int64_t v2 = LeftInGroup("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "file");
  const int64_t v1 = LeftInGroup("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                 "/sys/fs/cgroup/memory/memory.stat", "total_cache");
  return std::min({system, v2, v1});
}

}  // namespace bamba
