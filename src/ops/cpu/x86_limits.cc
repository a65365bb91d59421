#include "ops/cpu/x86_limits.h"

#include <immintrin.h>

#include <atomic>
#include <cstring>

#include "ops/cpu/x86_features.h"

namespace bamba::cpu {
namespace {

// Independent sums, more than any processor's latency × units needs.
constexpr int kSums = 12;

// Where results go, so that the compiler must compute them.
std::atomic<float> sink;

__attribute__((target("avx512f,avx512bf16"))) double Bf16Dots(int64_t rounds) {
  const auto a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3e80);  // 1 and 1/4
  __m512 x[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) x[i] = _mm512_set1_ps(static_cast<float>(i));  // different, or the compiler would compute one alone
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (auto& sum : x) sum = _mm512_dpbf16_ps(sum, a, b);
  for (int i = 1; i < kSums; i++) x[0] = _mm512_add_ps(x[0], x[i]);
  sink = _mm512_cvtss_f32(x[0]);
  return 2.0 * 32 * kSums * static_cast<double>(rounds);
}

__attribute__((target("avx512f,avx512vnni"))) double Int8Dots(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  __m512i x[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) x[i] = _mm512_set1_epi32(i);
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (auto& sum : x) sum = _mm512_dpbusd_epi32(sum, a, b);
  for (int i = 1; i < kSums; i++) x[0] = _mm512_add_epi32(x[0], x[i]);
  sink = static_cast<float>(x[0][0]);
  return 2.0 * 64 * kSums * static_cast<double>(rounds);
}

// The operand of LDTILECFG: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four sums of tiles from two tiles of rows and two of columns, as a matrix product would have them.
template <bool kInt8>
__attribute__((target("amx-tile,amx-int8,amx-bf16"))) double Tiles(int64_t rounds) {
  const TileConfig config;
  alignas(64) uint8_t operand[16 * 64];
  std::memset(operand, 0x3e, sizeof operand);                  // 0x3e3e is 0.19 in bf16
  asm volatile("" : : "r"(&config), "r"(operand) : "memory");  // g++ 12 doesn't know that the instructions read what lies there, and would leave it unwritten
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
  for (int64_t i = 0; i < rounds; i++) {
    if constexpr (kInt8) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
  return 2.0 * 4 * 16 * 16 * (kInt8 ? 64 : 32) * static_cast<double>(rounds);
}

}  // namespace

ArithmeticKernel Bf16DotKernel() { return HasAvx512Bf16() ? Bf16Dots : nullptr; }
ArithmeticKernel Int8DotKernel() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") ? Int8Dots : nullptr; }
ArithmeticKernel Bf16TileKernel() { return HasAmxBf16() ? Tiles<false> : nullptr; }
ArithmeticKernel Int8TileKernel() { return HasAmxInt8() ? Tiles<true> : nullptr; }

}  // namespace bamba::cpu
