#pragma once

#include <cstddef>
#include <utility>

#include "base/tensor.h"

namespace bamba {

// Owned memory, zeroed and page-aligned, taken from the system lazily: untouched pages cost nothing.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);  // throws Error with the size where the system refuses
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// A stack of temporary tensors in one buffer whose size is planned at start-up. Frames release in reverse order; nothing is freed singly.
class Workspace {
 public:
  static constexpr size_t kAlign = 64;

  Workspace() = default;
  explicit Workspace(size_t bytes) : buffer_(bytes) {}
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
