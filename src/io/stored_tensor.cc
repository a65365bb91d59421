#include "io/stored_tensor.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace bamba {
namespace {

struct NamedDtype {
  const char* name;
  size_t bytes;
  std::optional<Dtype> dtype;
};

constexpr NamedDtype kDtypes[] = {
    {"F32", 4, Dtype::kF32}, {"BF16", 2, Dtype::kBf16},
    {"F16", 2, Dtype::kF16}, {"F64", 8, Dtype::kF64},
    {"I64", 8, Dtype::kI64}, {"I32", 4, Dtype::kI32},
    {"I16", 2, {}},          {"I8", 1, {}},
    {"U64", 8, {}},          {"U32", 4, {}},
    {"U16", 2, {}},          {"U8", 1, {}},
    {"BOOL", 1, {}},         {"C64", 8, {}},
    {"F8_E4M3", 1, {}},      {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},
};

const NamedDtype* Lookup(std::string_view name) {
  for (const NamedDtype& d : kDtypes)
    if (d.name == name) return &d;
  return nullptr;
}

}  // namespace

std::optional<Dtype> DtypeFromStored(std::string_view name) {
  const NamedDtype* d = Lookup(name);
  return d ? d->dtype : std::nullopt;
}

const char* StoredName(Dtype dtype) {
  for (const NamedDtype& d : kDtypes)
    if (d.dtype == dtype) return d.name;
  return "";
}

size_t StoredElementBytes(std::string_view name) {
  const NamedDtype* d = Lookup(name);
  return d ? d->bytes : 0;
}

std::optional<size_t> StoredBytes(const std::vector<int64_t>& shape, size_t bytes_per_element) {
  // A zero among huge dimensions must not hide that the others overflow: strides are products of them.
  size_t n = bytes_per_element;
  bool empty = false;
  for (int64_t s : shape) {
    if (s < 0) return {};
    if (s == 0)
      empty = true;
    else if (__builtin_mul_overflow(n, static_cast<size_t>(s), &n) || n > INT64_MAX)
      return {};
  }
  return empty ? 0 : n;
}

void CheckTensorName(std::string_view name, const std::string& where) {
  if (std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }))
    throw Error("{}: the name of a tensor of {} bytes has control characters", where, name.size());
}

std::string ShapeString(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor ViewOf(const char* data, std::string_view dtype, const std::vector<int64_t>& shape) {
  const std::optional<Dtype> known = DtypeFromStored(dtype);
  if (!known || shape.size() > Tensor::kMaxDims) return {};
  char* bytes = const_cast<char*>(data);  // Tensor has no read-only form; the mapping itself is read-only
  if (shape.empty()) return Tensor(bytes, *known, {1});
  return Tensor(bytes, *known, shape.data(), static_cast<int>(shape.size()));
}

}  // namespace bamba
