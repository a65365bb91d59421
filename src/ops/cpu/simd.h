#pragma once

#include <vector>

namespace bamba::cpu {

// The instruction sets that the CPU's ops are written for; each includes those before it. AVX2 includes FMA and F16C; AVX-512 is F, BW, DQ, VL and CD. The last
// two differ from AVX-512 in products with bf16 weights alone, where the Context isn't precise: dot products of bf16 pairs by vectors, and by AMX's tiles.
enum class SimdLevel { kAvx2, kAvx512, kAvx512Bf16, kAmx };

const char* Name(SimdLevel level);  // as BAMBA_SIMD spells it: "avx2", "avx512", "avx512bf16", "amx"

// The levels that this processor and system have, lowest first; none on a processor without AVX2.
std::vector<SimdLevel> SimdLevels();

// Chooses the level that BAMBA_SIMD names, without it the best one; for main(), before any op runs. Throws Error where the processor has no level at all, or
// BAMBA_SIMD names an unknown one or one that it lacks. A program that does not call it gets the best level.
void ChooseSimd();

// Ops run at this level from now on, in the whole process. Not while an op runs; the level must be one of SimdLevels().
void SetSimd(SimdLevel level);

// The level that ops run at, and its name.
SimdLevel CurrentSimd();
const char* SimdName();

}  // namespace bamba::cpu
