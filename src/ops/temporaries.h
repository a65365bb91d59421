#pragma once

#include "ops/batch.h"
#include "ops/context.h"

namespace bamba {

// What ops take for themselves besides their operands: here, so that the plan of a run can count it.

// The temporary that Linear takes for x rounded to bf16, each row padded: where the weight is bf16, the context isn't precise and the processor has bf16 dot
// products.
inline Tensor RoundedRows(Context& ctx, int64_t rows, int64_t columns) {
  constexpr int64_t kStep = 32;  // numbers that AVX-512 and AMX multiply at a time
  return ctx.workspace->Take(Dtype::kBf16, {rows, (columns + kStep - 1) / kStep * kStep});
}

// The temporary of SsdScan: C_t · B_s for a row t and the tokens s of its chunk up to it, which the heads of a group share. [rows, groups · kSsdChunk]
inline Tensor ScanScores(Context& ctx, int64_t rows, int64_t groups) { return ctx.workspace->Take(Dtype::kF32, {rows, groups * kSsdChunk}); }

}  // namespace bamba
