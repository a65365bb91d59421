#pragma once

#include <cstdint>
#include <vector>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {

// cuBLASLt, opened when it is first asked for: the file that BAMBA_CUBLASLT names, else the loader's or the toolkit's own place; BAMBA_CUBLASLT=none goes without.
bool HasCublas();

// Of its proposals for a product the `choice`-th instead of the chosen one, for measurements; −1: the chosen one again. Takes effect for products not seen
// before and for those seen alike.
void ForceCublasChoice(int choice);

}  // namespace bamba::cuda
