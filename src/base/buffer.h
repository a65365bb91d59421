#pragma once

#include <cstddef>
#include <utility>

#include "base/device_memory.h"
#include "base/tensor.h"

namespace bamba {

// Owned memory, zeroed and page-aligned: the host's, taken from the system lazily (untouched pages cost nothing), or a device's.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, DeviceMemory* device = nullptr);  // throws Error with the size where there is no room; `device` must outlive this
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), device_(other.device_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    return *this;
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
  DeviceMemory* device_ = nullptr;
};

// A stack of temporary tensors in one buffer whose size is planned at start-up. Frames release in reverse order; nothing is freed singly.
class Workspace {
 public:
  static constexpr size_t kAlign = 256;  // what a GPU's bulk copies and 16-byte accesses want of every row of a matrix, and more than a cache line

  Workspace() = default;
  explicit Workspace(size_t bytes, DeviceMemory* device = nullptr) : buffer_(bytes, device) {}
  // Counts only: pointers it gives must never be read or written. high_water() then says what a real one needs.
  static Workspace Measuring();

  void* Allocate(size_t bytes);  // past the capacity is a broken invariant: the plan was wrong
  Tensor Take(Dtype dtype, std::initializer_list<int64_t> shape);
  size_t used() const { return used_; }
  size_t high_water() const { return high_water_; }
  void ReleaseTo(size_t mark) { used_ = mark; }

 private:
  Buffer buffer_;
  bool measuring_ = false;
  size_t used_ = 0, high_water_ = 0;
};

}  // namespace bamba
