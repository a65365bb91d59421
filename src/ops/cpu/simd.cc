#include "ops/cpu/simd.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "hwy/highway.h"
#include "ops/cpu/x86_features.h"

namespace bamba::cpu {
namespace {

static_assert(HWY_TARGETS == (HWY_AVX2 | HWY_AVX3), "the build compiles the CPU's ops for the levels of SimdLevel");

// What Highway's ops are compiled for; it knows no more of the higher levels.
constexpr int64_t Target(SimdLevel level) { return level == SimdLevel::kAvx2 ? HWY_AVX2 : HWY_AVX3; }

bool Has(SimdLevel level) {
  static const int64_t targets = hwy::SupportedTargets();  // Highway's own answer, before any level was forced
  if (!(targets & Target(level))) return false;
  return level < SimdLevel::kAvx512Bf16 || (HasAvx512Bf16() && (level < SimdLevel::kAmx || HasAmxBf16()));
}

std::vector<SimdLevel> FindLevels() {
  std::vector<SimdLevel> levels;
  for (SimdLevel level : {SimdLevel::kAvx2, SimdLevel::kAvx512, SimdLevel::kAvx512Bf16, SimdLevel::kAmx})
    if (Has(level)) levels.push_back(level);
  return levels;
}

std::atomic<SimdLevel>& Current() {
  static std::atomic<SimdLevel> level = FindLevels().empty() ? SimdLevel::kAvx2 : FindLevels().back();
  return level;
}

}  // namespace

const char* Name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx2: return "avx2";
    case SimdLevel::kAvx512: return "avx512";
    case SimdLevel::kAvx512Bf16: return "avx512bf16";
    case SimdLevel::kAmx: return "amx";
  }
  return "";
}

std::vector<SimdLevel> SimdLevels() {
  static const std::vector<SimdLevel> levels = FindLevels();
  return levels;
}

void SetSimd(SimdLevel level) {
  CHECK_MSG(Has(level), "this processor lacks {}", Name(level));
  Current() = level;
  hwy::SetSupportedTargetsForTest(Target(level));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void ChooseSimd() {
  const std::vector<SimdLevel> levels = SimdLevels();
  if (levels.empty()) throw Error("this processor has no AVX2, FMA and F16C, which bamba needs: it runs on x86-64 processors from 2013 (Haswell, Zen) on");
  const char* wanted = std::getenv("BAMBA_SIMD");
  if (!wanted || !*wanted) return SetSimd(levels.back());
  const auto found = std::find_if(levels.begin(), levels.end(), [&](SimdLevel level) { return std::string_view(wanted) == Name(level); });
  if (found == levels.end()) {
    std::vector<const char*> names;
    for (SimdLevel level : levels) names.push_back(Name(level));
    throw Error("BAMBA_SIMD: found '{}', expected {}: what this processor has; unset it for the best", wanted, fmt::join(names, " or "));
  }
  SetSimd(*found);
}

SimdLevel CurrentSimd() { return Current(); }
const char* SimdName() { return Name(CurrentSimd()); }

}  // namespace bamba::cpu
