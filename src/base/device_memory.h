#pragma once

#include <cstddef>

namespace bamba {

// Memory that the host can't touch: a GPU's. Copies happen in the order of the work that the device was given; host memory may change or be read once a call
// returns.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* Allocate(size_t bytes) = 0;  // zeroed, aligned to 256; throws Error with the size where there is no room
  virtual void Free(void* p) = 0;
  virtual void Upload(void* to, const void* from, size_t bytes) = 0;
  virtual void Download(void* to, const void* from, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;  // within the device; no overlap

  // Memory of the host's that copies go to and from at full speed, and without waiting: it may be changed or read after Wait, by the host. Taking it is slow, a
  // millisecond for each of its megabytes.
  virtual void* AllocateHost(size_t bytes) = 0;
  virtual void FreeHost(void* p) = 0;
  virtual void UploadLater(void* to, const void* from, size_t bytes) = 0;
  virtual void DownloadLater(void* to, const void* from, size_t bytes) = 0;
  virtual void Wait() = 0;  // for all that is queued
};

}  // namespace bamba
