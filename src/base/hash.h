#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace bamba {

// A 64-bit fingerprint of bytes, some GB/s: tells accidental differences, and is no defence against someone who makes them on purpose. The same on every
// machine; the same for the same bytes however they are cut into calls of Add.
class Hash {
 public:
  void Add(const void* data, size_t bytes);
  void Add(std::string_view text) { Add(text.data(), text.size()); }
  // A number by its bits; only of types without padding.
  template <typename T>
  void AddValue(const T& value) {
    Add(&value, sizeof value);
  }
  uint64_t value() const;

 private:
  static constexpr size_t kBlock = 32;
  void Take(const unsigned char* block);

  uint64_t lanes_[4] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89};  // π
  uint64_t length_ = 0;
  unsigned char tail_[kBlock] = {};  // of length_ % kBlock bytes
};

}  // namespace bamba
