#include "base/hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace bamba {
namespace {

// Two odd constants from the digits of the golden ratio and of √2.
constexpr uint64_t kPhi = 0x9e3779b97f4a7c15, kRoot = 0x6a09e667f3bcc909;

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 32)) * kPhi;
  x = (x ^ (x >> 29)) * kRoot;
  return x ^ (x >> 32);
}

}  // namespace

// Each lane is a bijection of what it held for every word, and of the word for what it held: no single change is lost.
void Hash::Take(const unsigned char* block) {
  for (size_t i = 0; i < 4; i++) {
    uint64_t word;
    std::memcpy(&word, block + 8 * i, 8);
    lanes_[i] = std::rotl(lanes_[i] ^ (word * kRoot), 29) * kPhi;
  }
}

void Hash::Add(const void* data, size_t bytes) {
  auto* p = static_cast<const unsigned char*>(data);
  const size_t held = length_ % kBlock;
  length_ += bytes;
  if (held > 0) {
    const size_t n = std::min(bytes, kBlock - held);
    std::memcpy(tail_ + held, p, n);
    p += n, bytes -= n;
    if (held + n < kBlock) return;
    Take(tail_);
  }
  for (; bytes >= kBlock; p += kBlock, bytes -= kBlock) Take(p);
  if (bytes > 0) std::memcpy(tail_, p, bytes);
}

uint64_t Hash::value() const {
  Hash end = *this;
  std::fill(end.tail_ + length_ % kBlock, end.tail_ + kBlock, 0);
  end.Take(end.tail_);
  uint64_t sum = length_;
  for (uint64_t lane : end.lanes_) sum = Mix(sum ^ lane);
  return sum;
}

}  // namespace bamba
