#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "io/stored_tensor.h"

namespace bamba {

// safetensors: 8 bytes little-endian N, N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {…}}, then the data,
// which the tensors cover without holes or overlap (https://huggingface.co/docs/safetensors).
struct SafetensorsContent {
  std::vector<StoredTensor> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

// Views into `bytes`, nothing is copied. Throws Error naming `where` for anything but a sound file whose tensors are aligned to their dtype.
SafetensorsContent ParseSafetensors(std::span<const char> bytes, const std::string& where);

// A mapped file of tensors.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<StoredTensor>& tensors() const { return content_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return content_.metadata; }
  const StoredTensor* Find(std::string_view name) const;  // null where absent
  // The numbers of tensor `name`. Throws Error where it is absent or has another dtype.
  Tensor Get(std::string_view name, Dtype dtype) const;

 private:
  MappedFile file_;
  SafetensorsContent content_;
  std::unordered_map<std::string_view, const StoredTensor*> by_name_;
};

// Writes a file: first everything's name, dtype and shape, then the numbers in the order of entries(). Nothing is under `path` before Commit().
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    Dtype dtype;  // any but kC128
    std::vector<int64_t> shape;
    size_t bytes() const;
  };

  // Reorders the entries: wide dtypes first, otherwise as given, so that all are aligned.
  SafetensorsWriter(const std::string& path, std::vector<Entry> entries, const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  const std::vector<Entry>& entries() const { return entries_; }
  void Write(const void* data, size_t bytes);  // the next bytes, in pieces of any size
  void Commit();

 private:
  std::vector<Entry> entries_;
  FileWriter file_;
  uint64_t due_ = 0;  // bytes still to come
};

}  // namespace bamba
