#include "ops/cpu/x86_features.h"

#include <cpuid.h>

#include "base/amx.h"

namespace bamba::cpu {
namespace {

// `bit` of EDX of CPUID's leaf 7. Leave is refused where the system does not save the tiles (XCR0), so XGETBV would add nothing.
bool HasAmx(int bit) {
  constexpr int kTiles = 24;
  unsigned a, b, c, d;
  static const bool allowed = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> kTiles & 1) && AllowAmx();
  return allowed && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> bit & 1);
}

}  // namespace

bool HasAvx512Bf16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}
bool HasAmxBf16() { return HasAmx(22); }
bool HasAmxInt8() { return HasAmx(25); }

}  // namespace bamba::cpu
