#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.h"

namespace bamba {

// A tensor as it lies in a checkpoint's file, its numbers a view of the mapped file.
struct StoredTensor {
  std::string name;
  std::string dtype;           // as safetensors spells it: "BF16", "I64", "F8_E4M3", …
  std::vector<int64_t> shape;  // empty: a scalar
  size_t bytes = 0;
  std::string file;
  // Absent where we have no arithmetic for the dtype, or for more than Tensor::kMaxDims dimensions. A scalar has shape [1].
  Tensor tensor;
};

// The dtype that a safetensors name stands for, and the name of a dtype; nothing or "" where there is none.
std::optional<Dtype> DtypeFromStored(std::string_view name);
const char* StoredName(Dtype dtype);
// Bytes of one element, 0 for a name that is unknown.
size_t StoredElementBytes(std::string_view name);

// elements · bytes_per_element of a shape, or nothing where it does not fit size_t or a dimension is negative.
std::optional<size_t> StoredBytes(const std::vector<int64_t>& shape, size_t bytes_per_element);
// Throws Error naming `where` for a name that a message could not show in one line.
void CheckTensorName(std::string_view name, const std::string& where);

std::string ShapeString(const std::vector<int64_t>& shape);

// The view of `data`, contiguous; absent as above.
Tensor ViewOf(const char* data, std::string_view dtype, const std::vector<int64_t>& shape);

}  // namespace bamba
