#include "base/tensor.h"

namespace bamba {

Tensor::Tensor(void* data, Dtype dtype, const int64_t* shape, int dims) : data_(data), dtype_(dtype), dims_(dims) {
  CHECK_MSG(dims >= 1 && dims <= kMaxDims, "{} dimensions", dims);
  int64_t stride = 1;
  for (int d = dims - 1; d >= 0; d--) {
    CHECK_MSG(shape[d] >= 0, "dimension {} is {}", d, shape[d]);
    shape_[d] = shape[d];
    stride_[d] = stride;
    stride *= shape[d];
  }
}

int64_t Tensor::size() const {
  if (dims_ == 0) return 0;
  int64_t n = 1;
  for (int d = 0; d < dims_; d++) n *= shape_[d];
  return n;
}

bool Tensor::contiguous() const {
  int64_t stride = 1;
  for (int d = dims_ - 1; d >= 0; d--) {
    if (shape_[d] != 1 && stride_[d] != stride) return false;
    stride *= shape_[d];
  }
  return true;
}

bool Tensor::SameShape(const Tensor& other) const { return dims_ == other.dims_ && shape_ == other.shape_; }

Tensor Tensor::Rows(int64_t begin, int64_t count) const {
  CHECK_MSG(begin >= 0 && count >= 0 && begin + count <= shape_[0], "rows {}+{} of {}", begin, count, ShapeString());
  Tensor t = *this;
  t.data_ = static_cast<char*>(data_) + begin * stride_[0] * static_cast<int64_t>(SizeOf(dtype_));
  t.shape_[0] = count;
  return t;
}

Tensor Tensor::Columns(Range range) const {
  CHECK_MSG(dims_ == 2 && range.begin >= 0 && range.end() <= shape_[1], "columns {}+{} of {}", range.begin, range.size, ShapeString());
  Tensor t = *this;
  t.data_ = static_cast<char*>(data_) + range.begin * static_cast<int64_t>(SizeOf(dtype_));
  t.shape_[1] = range.size;
  return t;
}

Tensor Tensor::At(int64_t i) const {
  CHECK_MSG(dims_ >= 2 && i >= 0 && i < shape_[0], "element {} of {}", i, ShapeString());
  Tensor t;
  t.data_ = static_cast<char*>(data_) + i * stride_[0] * static_cast<int64_t>(SizeOf(dtype_));
  t.dtype_ = dtype_;
  t.dims_ = dims_ - 1;
  for (int d = 0; d < t.dims_; d++) t.shape_[d] = shape_[d + 1], t.stride_[d] = stride_[d + 1];
  return t;
}

Tensor Tensor::View(std::initializer_list<int64_t> shape) const {
  CHECK_MSG(contiguous(), "a view of strided {}", ShapeString());
  Tensor t(data_, dtype_, shape);
  CHECK_MSG(t.size() == size(), "{} seen as {}", ShapeString(), t.ShapeString());
  return t;
}

std::string Tensor::ShapeString() const {
  std::string s = "[";
  for (int d = 0; d < dims_; d++) s += (d ? ", " : "") + std::to_string(shape_[d]);
  return s + "]";
}

}  // namespace bamba
