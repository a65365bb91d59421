#include "cli/suggest.h"

#include <algorithm>

namespace bamba::cli {
namespace {

size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); i++) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); j++) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); i++)
    for (size_t j = 1; j <= b.size(); j++) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

}  // namespace

std::string Nearest(std::string_view typed, const std::vector<std::string>& names) {
  constexpr size_t kLongest = 64;  // nothing of ours is longer; keeps the table small for any input
  std::string nearest;
  size_t least = std::string::npos;
  if (typed.size() > kLongest) return nearest;
  for (const std::string& name : names) {
    const size_t distance = Distance(typed, name);
    if (distance <= std::max<size_t>(1, name.size() / 3) && distance < least) nearest = name, least = distance;
  }
  return nearest;
}

}  // namespace bamba::cli
