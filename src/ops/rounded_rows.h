#pragma once

#include "ops/context.h"

namespace bamba {

// The temporary that Linear takes for x rounded to bf16, each row padded: where the weight is bf16, the context isn't precise and the processor has bf16 dot
// products.
inline Tensor RoundedRows(Context& ctx, int64_t rows, int64_t columns) {
  constexpr int64_t kStep = 32;  // numbers that AVX-512 and AMX multiply at a time
  return ctx.workspace->Take(Dtype::kBf16, {rows, (columns + kStep - 1) / kStep * kStep});
}

}  // namespace bamba
