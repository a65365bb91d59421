// What this machine can do, the yardstick beside which speeds are reported: what `bamba bench` measures for its limits, and the other peaks.
//
// usage: limits [threads] [seconds for each figure]       One JSON object; 0 where the processor lacks the instructions.
#include <fmt/format.h>

#include <cstdlib>

#include "ops/cpu/limits.h"
#include "ops/cpu/simd.h"

int main(int argc, char** argv) {
  using namespace bamba;
  const int threads = argc > 1 ? std::atoi(argv[1]) : AvailableCores();
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.5;
  if (threads < 1 || threads > 1024 || !(seconds > 0)) return fmt::print(stderr, "usage: limits [threads] [seconds for each figure]\n"), 2;
  try {
    cpu::ChooseSimd();
    ThreadPool pool(threads);
    fmt::print(
        "{{\"threads\": {}, \"simd\": \"{}\", \"read_gb_s\": {:.1f}, \"fma_gflop_s\": {:.0f}, \"vnni_gop_s\": {:.0f}, \"bf16_gflop_s\": {:.0f}, "
        "\"amx_int8_gop_s\": {:.0f}, \"amx_bf16_gflop_s\": {:.0f}}}\n",
        threads, cpu::SimdName(), cpu::ReadBandwidth(pool, 3 * seconds) * 1e-9, cpu::FmaRate(pool, seconds) * 1e-9, cpu::Int8DotRate(pool, seconds) * 1e-9,
        cpu::Bf16DotRate(pool, seconds) * 1e-9, cpu::Int8TileRate(pool, seconds) * 1e-9, cpu::Bf16TileRate(pool, seconds) * 1e-9);
  } catch (const std::exception& e) {
    return fmt::print(stderr, "limits: {}\n", e.what()), 1;
  }
}
