#include "ops/cpu/simd.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "hwy/highway.h"

namespace bamba::cpu {
namespace {

constexpr int64_t Target(SimdLevel level) { return level == SimdLevel::kAvx512 ? HWY_AVX3 : HWY_AVX2; }

static_assert(HWY_TARGETS == (HWY_AVX2 | HWY_AVX3), "the build compiles the CPU's ops for the levels of SimdLevel");

// Highway's own answer, before any level was forced.
int64_t Supported() {
  static const int64_t targets = hwy::SupportedTargets();
  return targets;
}

}  // namespace

const char* Name(SimdLevel level) { return level == SimdLevel::kAvx512 ? "avx512" : "avx2"; }

std::vector<SimdLevel> SimdLevels() {
  std::vector<SimdLevel> levels;
  for (SimdLevel level : {SimdLevel::kAvx2, SimdLevel::kAvx512})
    if (Supported() & Target(level)) levels.push_back(level);
  return levels;
}

void SetSimd(SimdLevel level) {
  CHECK_MSG(Supported() & Target(level), "this processor lacks {}", Name(level));
  hwy::SetSupportedTargetsForTest(Target(level));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void ChooseSimd() {
  const std::vector<SimdLevel> levels = SimdLevels();
  if (levels.empty()) throw Error("this processor has no AVX2, FMA and F16C, which bamba needs: it runs on x86-64 processors from 2013 (Haswell, Zen) on");
  const char* wanted = std::getenv("BAMBA_SIMD");
  if (!wanted) return SetSimd(levels.back());
  const auto found = std::find_if(levels.begin(), levels.end(), [&](SimdLevel level) { return std::string_view(wanted) == Name(level); });
  if (found == levels.end()) {
    std::vector<const char*> names;
    for (SimdLevel level : levels) names.push_back(Name(level));
    throw Error("BAMBA_SIMD: found '{}', expected {}: what this processor has; unset it for the best", wanted, fmt::join(names, " or "));
  }
  SetSimd(*found);
}

const char* SimdName() { return Name(hwy::SupportedTargets() & Target(SimdLevel::kAvx512) ? SimdLevel::kAvx512 : SimdLevel::kAvx2); }

}  // namespace bamba::cpu
