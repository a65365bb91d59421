#pragma once

#include "ops/cuda/async.cuh"
#include "ops/cuda/state.cuh"

// The products y = x Wᵀ + bias of linear.cu, one function for each way to compute them.
namespace bamba::cuda {

struct Product {
  const void* x;
  int64_t x_stride;
  const void* w;      // [out, in], rows one after the other
  const float* bias;  // [out] or null
  void* y;
  int64_t y_stride;
  int64_t rows, in, out;
  bool wide;  // y is f32, else bf16
};

// Any dtypes, shapes and alignment, in f32. An element is the sum, in order, of the sums over 32 inputs each, which are chains of fused multiply-adds: the
// same bits for any number of rows.
void GeneralProduct(State& state, const Product& p, Dtype x, Dtype w);

// bf16 times bf16 on tensor cores. They want 16-byte loads (VectorsFit). For Skinny and Tiled an element is the sum, in order, of the sums over kPiece inputs
// each, which are chains of MmaPair's products; with Hopper's instructions it is a chain of products of 16 inputs that follow each other, or the sum of two
// (FirstHalf). So Skinny and Tiled, and FewRows and Hopper, have the same bits for any number of rows.
inline constexpr int64_t kPiece = 256;
inline constexpr int64_t kSkinnyRows = 64;            // at most
void SkinnyProduct(State& state, const Product& p);   // at the speed of reading the weights
void TiledProduct(State& state, const Product& p);    // for many rows
bool HasHopperProducts(const State& state);           // then there are
inline constexpr int64_t kFewRows = 128;              // at most
void FewRowsProduct(State& state, const Product& p);  // at the speed of reading the weights
void HopperProduct(State& state, const Product& p);   // for many rows

// With Hopper's instructions, an element of a long product with few outputs is the sum of two such chains, over the first so many inputs and over the rest,
// since two multiprocessors share its tile when there are few rows. All inputs elsewhere.
inline int64_t FirstHalf(const State& state, const Product& p) {
  const int64_t pieces = DivideUp(p.in, kPiece);
  return HasHopperProducts(state) && p.out <= 32 * state.sms() && pieces >= 8 ? pieces / 2 * kPiece : p.in;
}

// y = x Wᵀ, or silu(x Wᵀ) · (x upᵀ) with `up` as large as W, in bf16: in one go, by Hopper's instructions, where that is the fastest way: 97 to 128 rows,
// many outputs. False elsewhere.
bool WideProduct(State& state, const Product& p, const void* up = nullptr);

// For hundreds of rows and more, where results can be copied out in boxes: HopperProduct's way there, by rounds of pairs of blocks with 256 by 256 results.
bool LargeFits(const Product& p);
int64_t LargeRounds(const State& state, const Product& p);
void LargeProduct(State& state, const Product& p);
// silu(x Wᵀ) · (x upᵀ) in the same way, where that is faster than the parts one after the other. False elsewhere.
bool LargeGatedProduct(State& state, const Product& p, const void* up);

// By cuBLASLt, whose order depends on the number of rows. False where it isn't there or can't.
bool CublasProduct(State& state, const Product& p);
// Opens the library, which takes a tenth of a second and more: for a thread that has the time. Else the first product that wants it does.
void OpenCublas();

inline bool VectorsFit(const Product& p) {
  const auto address = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w);
  return address % 16 == 0 && p.x_stride % 8 == 0 && p.in % 8 == 0 && p.in > 0;
}

__device__ __forceinline__ void StoreResult(const Product& p, int64_t row, int64_t column, float sum) {
  const float value = p.bias ? sum + p.bias[column] : sum;
  if (p.wide)
    static_cast<float*>(p.y)[row * p.y_stride + column] = value;
  else
    static_cast<bf16*>(p.y)[row * p.y_stride + column] = __float2bfloat16_rn(value);
}

// 32 inputs of 16 outputs (a: rows g, a8: rows g + 8) by 8 rows of x (b): c += a bᵀ. Lane 4g + t brings inputs 8t … 8t+7 of its rows as they lie in memory; the
// instruction's own numbering of inputs is another, which doesn't matter as all three are numbered alike. c: outputs g, g, g + 8, g + 8 of rows 2t, 2t + 1, 2t,
// 2t + 1.
__device__ __forceinline__ void MmaPair(float (&c)[4], const uint4& a, const uint4& a8, const uint4& b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a.x), "r"(a8.x), "r"(a.y), "r"(a8.y), "r"(b.x), "r"(b.y));
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a.z), "r"(a8.z), "r"(a.w), "r"(a8.w), "r"(b.z), "r"(b.w));
}

}  // namespace bamba::cuda
