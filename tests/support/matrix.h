#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/tensor.h"

namespace bamba {

// A matrix of its own, normally distributed, its rows `gap` elements apart. The memory ends with the last row: asan sees a read past it.
class Matrix {
 public:
  Matrix(Dtype dtype, int64_t rows, int64_t cols, uint64_t seed, int64_t gap = 0) : cols_(cols) {
    const int64_t stride = cols + gap, size = rows > 0 ? rows * stride - gap : 0;
    data_.resize(static_cast<size_t>(size) * SizeOf(dtype));
    std::vector<double> values(static_cast<size_t>(size));
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (double& v : values) v = normal(random);
    Convert(values.data(), Dtype::kF64, data_.data(), dtype, values.size());
    // A Tensor gets its stride as columns of a wider one; an empty vector has no address.
    wide_ = Tensor(data_.empty() ? static_cast<void*>(&nothing_) : data_.data(), dtype, {rows, stride});
  }
  Matrix(Matrix&&) = default;
  Tensor tensor() const { return wide_.Columns({0, cols_}); }
  operator Tensor() const { return tensor(); }
  const std::vector<char>& bytes() const { return data_; }

 private:
  int64_t cols_;
  std::vector<char> data_;
  inline static double nothing_ = 0;
  Tensor wide_;
};

inline std::vector<double> Doubles(const Tensor& t) {
  std::vector<double> out(static_cast<size_t>(t.size()));
  for (int64_t i = 0; i < t.rows(); i++)
    Convert(static_cast<const char*>(t.data()) + static_cast<size_t>(i * t.stride(0)) * SizeOf(t.dtype()), t.dtype(), out.data() + i * t.cols(), Dtype::kF64,
            static_cast<size_t>(t.cols()));
  return out;
}

// Euclidean norm of `count` numbers, `step` apart, and of `more`.
inline double Norm(const double* v, int64_t count, int64_t step = 1, double more = 0) {
  double sum = more * more;
  for (int64_t i = 0; i < count; i++) sum += v[i * step] * v[i * step];
  return std::sqrt(sum);
}

inline bool SameBits(const Tensor& a, const Tensor& b) {
  if (!a.SameShape(b)) return false;
  for (int64_t i = 0; i < a.rows(); i++)
    if (std::memcmp(a.Row<float>(i), b.Row<float>(i), static_cast<size_t>(a.cols()) * sizeof(float)) != 0) return false;
  return true;
}

}  // namespace bamba
