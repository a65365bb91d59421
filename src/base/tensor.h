#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "base/dtype.h"

namespace bamba {

// A half-open range of columns (or rows) [begin, begin + size).
struct Range {
  int64_t begin = 0, size = 0;
  int64_t end() const { return begin + size; }
};

// A plain view of numbers on some device; it owns nothing and copies like a pointer. Row-major; the last dimension is contiguous, the others have
// strides, so that columns of a matrix are a view too. A default-constructed Tensor is absent (`!tensor`): an optional operand, such as a bias.
class Tensor {
 public:
  static constexpr int kMaxDims = 5;

  Tensor() = default;
  // Contiguous numbers at `data`.
  Tensor(void* data, Dtype dtype, std::initializer_list<int64_t> shape) : Tensor(data, dtype, shape.begin(), static_cast<int>(shape.size())) {}
  Tensor(void* data, Dtype dtype, const int64_t* shape, int dims);

  explicit operator bool() const { return data_ != nullptr; }
  void* data() const { return data_; }
  Dtype dtype() const { return dtype_; }
  int dims() const { return dims_; }
  int64_t shape(int d) const { return shape_[d]; }
  int64_t stride(int d) const { return stride_[d]; }  // in elements
  int64_t rows() const { return shape_[0]; }
  int64_t cols() const { return shape_[1]; }
  int64_t size() const;
  size_t bytes() const { return static_cast<size_t>(size()) * SizeOf(dtype_); }
  bool contiguous() const;
  bool SameShape(const Tensor& other) const;

  template <typename T>
  T* as() const {
    CHECK_MSG(kDtypeOf<T> == dtype_, "tensor holds {}, asked for {}", Name(dtype_), Name(kDtypeOf<T>));
    return static_cast<T*>(data_);
  }
  // First element of row i (of the sub-tensor i where there are more dimensions).
  template <typename T>
  T* Row(int64_t i) const {
    return as<T>() + i * stride_[0];
  }

  Tensor Rows(int64_t begin, int64_t count) const;
  Tensor Columns(Range range) const;                        // of a matrix
  Tensor At(int64_t i) const;                               // sub-tensor i: one dimension less
  Tensor View(std::initializer_list<int64_t> shape) const;  // of contiguous numbers, same count

  std::string ShapeString() const;  // "[2, 77, 512]"

 private:
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::kF32;
  int dims_ = 0;
  std::array<int64_t, kMaxDims> shape_{}, stride_{};
};

}  // namespace bamba
