#pragma once

#include <cstdint>

namespace bamba {

// Bytes that this process can still use without swapping: the system's own estimate (caches that can be dropped count as free) and the limit of its
// control group, whichever is less. INT64_MAX where neither says.
int64_t AvailableMemory();

}  // namespace bamba
