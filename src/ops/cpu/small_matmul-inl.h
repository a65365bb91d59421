// A product of small matrices that lie in the caches, for the backward of the scan and of attention.
#if defined(BAMBA_OPS_CPU_SMALL_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BAMBA_OPS_CPU_SMALL_MATMUL_INL_H_
#undef BAMBA_OPS_CPU_SMALL_MATMUL_INL_H_
#else
#define BAMBA_OPS_CPU_SMALL_MATMUL_INL_H_
#endif

#include "ops/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// Element (i, j) at data[i · row + j · column].
struct Matrix {
  const float* data;
  int64_t row, column = 1;
  Matrix Transposed() const { return {data, column, row}; }
};

template <int kRows, int kVecs, typename Lanes>
HWY_INLINE void AddTile(Lanes lanes, int64_t k, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  const int64_t step = LaneCount();
  Vec sum[kRows][kVecs];
  for (int i = 0; i < kRows; i++)
    for (int v = 0; v < kVecs; v++) sum[i][v] = lanes.Load(c + i * c_row + v * step);
  for (int64_t l = 0; l < k; l++) {
    Vec right[kVecs];
    for (int v = 0; v < kVecs; v++) right[v] = lanes.Load(b + l * b_row + v * step);
    for (int i = 0; i < kRows; i++) {
      const Vec left = Set(a.data[i * a.row + l * a.column]);
      for (int v = 0; v < kVecs; v++) sum[i][v] = hn::MulAdd(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; i++)
    for (int v = 0; v < kVecs; v++) lanes.Store(sum[i][v], c + i * c_row + v * step);
}

// c [m, n] += a [m, k] b [k, n], with rows of b and c contiguous; each element is summed over k in order, whatever its place.
inline HWY_ATTR void AddMatMul(int64_t m, int64_t n, int64_t k, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  constexpr int kRows = 4, kVecs = 2;
  const int64_t step = LaneCount();
  const auto strip = [&](auto vecs, auto lanes, int64_t j) HWY_ATTR {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) AddTile<kRows, vecs()>(lanes, k, {a.data + i * a.row, a.row, a.column}, b + j, b_row, c + i * c_row + j, c_row);
    for (; i < m; i++) AddTile<1, vecs()>(lanes, k, {a.data + i * a.row, a.row, a.column}, b + j, b_row, c + i * c_row + j, c_row);
  };
  int64_t j = 0;
  for (; j + kVecs * step <= n; j += kVecs * step) strip(std::integral_constant<int, kVecs>(), AllLanes(), j);
  for (; j < n; j += step) strip(std::integral_constant<int, 1>(), FirstLanes(n - j), j);
}

// to [columns, rows] = fromᵀ, for from [rows, columns].
inline void Transpose(int64_t rows, int64_t columns, const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) to[j * to_row + i] = from[i * from_row + j];
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#endif
