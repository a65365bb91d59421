#pragma once

#include <cstdint>

namespace bamba {

// How often this program has called operator new so far, from any thread.
int64_t Allocations();

}  // namespace bamba
