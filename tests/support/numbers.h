#pragma once

#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "base/tensor.h"

namespace bamba {

// A tensor that owns its numbers; absent where default-constructed. A matrix's rows may lie `gap` elements apart, as columns of a wider matrix do; the memory
// ends with the last number, so that asan sees a read past it.
class Numbers {
 public:
  Numbers() = default;
  Numbers(Dtype dtype, std::vector<int64_t> shape, int64_t gap = 0) : dtype_(dtype), shape_(std::move(shape)), gap_(gap) {
    int64_t size = 1;
    for (int64_t s : shape_) size *= s;
    if (gap_ > 0 && size > 0) size += (shape_[0] - 1) * gap_;
    data_.resize(static_cast<size_t>(size) * SizeOf(dtype));
  }
  // Every number drawn from `draw`, rounded to the dtype.
  Numbers(Dtype dtype, std::vector<int64_t> shape, const std::function<double()>& draw, int64_t gap = 0) : Numbers(dtype, std::move(shape), gap) {
    std::vector<double> values(data_.size() / SizeOf(dtype));
    for (double& v : values) v = draw();
    Convert(values.data(), Dtype::kF64, data_.data(), dtype, values.size());
  }

  operator Tensor() const { return tensor(); }
  Tensor tensor() const {
    if (shape_.empty()) return {};
    void* data = data_.empty() ? static_cast<void*>(&nothing_) : const_cast<char*>(data_.data());
    if (gap_ == 0) return Tensor(data, dtype_, shape_.data(), static_cast<int>(shape_.size()));
    return Tensor(data, dtype_, {shape_[0], shape_[1] + gap_}).Columns({0, shape_[1]});
  }
  // The same numbers in double, contiguous; changed by `map` where given.
  Numbers Double(const std::function<double(double)>& map = {}) const {
    Numbers out(Dtype::kF64, shape_);
    const Tensor t = tensor();
    const int64_t rows = gap_ > 0 ? shape_[0] : 1, columns = rows > 0 ? t.size() / rows : 0;
    double* to = reinterpret_cast<double*>(out.data_.data());
    for (int64_t i = 0; i < rows; i++)
      Convert(data_.data() + static_cast<size_t>(i * (columns + gap_)) * SizeOf(dtype_), dtype_, to + i * columns, Dtype::kF64, static_cast<size_t>(columns));
    if (map)
      for (int64_t i = 0; i < t.size(); i++) to[i] = map(to[i]);
    return out;
  }
  double* doubles() const { return tensor().as<double>(); }
  float* floats() const { return tensor().as<float>(); }

 private:
  inline static double nothing_ = 0;
  Dtype dtype_ = Dtype::kF32;
  std::vector<int64_t> shape_;
  int64_t gap_ = 0;
  std::vector<char> data_;
};

// Draws of one seed.
class Draws {
 public:
  explicit Draws(uint64_t seed) : random_(seed) {}
  std::function<double()> Normal(double sigma = 1) {
    return [this, sigma] { return sigma * std::normal_distribution<double>()(random_); };
  }
  std::function<double()> Uniform(double low, double high) {
    return [this, low, high] { return std::uniform_real_distribution<double>(low, high)(random_); };
  }
  int64_t Int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }
  std::mt19937_64& random() { return random_; }

 private:
  std::mt19937_64 random_;
};

inline bool SameBits(const float* a, const float* b, int64_t n) { return n == 0 || std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0; }

}  // namespace bamba
