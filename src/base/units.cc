#include "base/units.h"

#include <fmt/format.h>

#include <cmath>

namespace bamba {
namespace {

// Three significant digits and the largest unit that leaves at least 1.
std::string Scaled(double x, const char* const* units, int count) {
  int u = 0;
  while (u + 1 < count && std::abs(x) >= 999.5) x /= 1000, u++;
  int digits = u == 0 || std::abs(x) >= 99.95 ? 0 : std::abs(x) >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", x, digits, units[u]);
}

}  // namespace

std::string HumanBytes(double bytes) {
  static constexpr const char* kUnits[] = {" bytes", " kB", " MB", " GB", " TB", " PB", " EB"};
  return Scaled(bytes, kUnits, 7);
}

std::string HumanCount(double n) {
  static constexpr const char* kUnits[] = {"", " k", " M", " B", " T"};
  return Scaled(n, kUnits, 5);
}

std::string HumanRate(double n) { return n < 9.995 ? fmt::format("{:.2f}", n) : n < 99.95 ? fmt::format("{:.1f}", n) : HumanCount(n); }

std::string HumanSeconds(double s) {
  if (s < 1e-3) return fmt::format("{:.0f} µs", s * 1e6);
  if (s < 9.95e-3) return fmt::format("{:.1f} ms", s * 1e3);
  if (s < 0.9995) return fmt::format("{:.0f} ms", s * 1e3);
  if (s < 59.95) return fmt::format("{:.1f} s", s);
  int64_t whole = std::llround(s);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string Thousands(int64_t n) {
  std::string text = std::to_string(n);
  size_t first = n < 0 ? 1 : 0;  // digit
  for (size_t i = text.size(); i > first + 3;) text.insert(i -= 3, 1, ',');
  return text;
}

}  // namespace bamba
