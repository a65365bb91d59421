#include "base/buffer.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/error.h"
#include "base/units.h"

namespace bamba {

Buffer::Buffer(size_t bytes, DeviceMemory* device) : size_(bytes), device_(device) {
  if (bytes == 0) return;
  if (device) {
    data_ = static_cast<char*>(device->Allocate(bytes));
    return;
  }
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("the system refuses {} of memory; use a smaller context, batch or model", HumanBytes(bytes));
  data_ = static_cast<char*>(p);
  // Large pages, where the system has them to give: a step walks through tens of megabytes, more than the processor remembers the places of in small ones.
  constexpr size_t kLargePage = size_t{1} << 21;
  if (bytes >= kLargePage) madvise(p, bytes, MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (!data_) return;
  if (device_)
    device_->Free(data_);
  else
    munmap(data_, size_);
}

Workspace Workspace::Measuring() {
  Workspace w;
  w.measuring_ = true;
  return w;
}

void* Workspace::Allocate(size_t bytes) {
  size_t begin = used_, end = begin + (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign;
  CHECK_MSG(measuring_ || end <= buffer_.size(), "workspace of {} bytes asked for {}", buffer_.size(), end);
  used_ = end;
  high_water_ = std::max(high_water_, end);
  // A measuring workspace has no memory: any aligned address that isn't null marks a tensor as present.
  return measuring_ ? reinterpret_cast<void*>(kAlign + begin) : buffer_.data() + begin;
}

Tensor Workspace::Take(Dtype dtype, std::initializer_list<int64_t> shape) {
  size_t n = SizeOf(dtype);
  for (int64_t s : shape) CHECK_MSG(s >= 0 && !__builtin_mul_overflow(n, static_cast<size_t>(s), &n), "a dimension of {} is negative or too large", s);
  return Tensor(Allocate(n), dtype, shape);
}

}  // namespace bamba
