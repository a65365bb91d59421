#pragma once

#include "ops/ops.h"

namespace bamba::cpu {

// Linear with a bf16 weight by bf16 dot products: x is rounded to bf16 (to nearest even; what is too small for a normal number counts as 0), products are exact
// and their sums f32. Each has its own canonical order, the same for one row and for many, and takes RoundedRows() (ops/temporaries.h) of the workspace for
// its time.
void LinearAvx512Bf16(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y);  // needs HasAvx512Bf16()
void LinearsAmx(Context& ctx, const Tensor& x, std::span<const LinearWeight> w, const Tensor& y);  // needs HasAmxBf16()

}  // namespace bamba::cpu
