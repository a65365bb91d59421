#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bamba::cli {

// The one of `names` that `typed` was most likely meant to be: fewest insertions, deletions, replacements and swaps of neighbours, the first of equals.
// Empty where none is near (more than a third of its letters wrong, or more than one in the shortest).
std::string Nearest(std::string_view typed, const std::vector<std::string>& names);

}  // namespace bamba::cli
