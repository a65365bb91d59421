#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "engine/state_pool.h"

namespace bamba {

using SnapshotId = int64_t;

// A text and its state at some time (StatePool::Save).
struct Snapshot {
  std::vector<int32_t> tokens;  // of which the model has read `position`
  int64_t position = 0, reach = 0;
  std::vector<std::span<char>> image;  // in the store's memory
  Buffer memory;                       // which is this, where no device has the state
  int64_t bytes = 0;                   // of the store's budget
};

// Snapshots in no more than a number of the host's bytes together: for a new one, those used longest ago are dropped. Where a device has the state they lie in
// blocks that it copies to and from while the host goes on; a block is taken once and used again.
class SnapshotStore {
 public:
  SnapshotStore(int64_t budget, DeviceMemory* device) : budget_(budget), device_(device) {}
  ~SnapshotStore();
  SnapshotStore(const SnapshotStore&) = delete;
  SnapshotStore& operator=(const SnapshotStore&) = delete;

  static constexpr int64_t kBlock = int64_t{2} << 20;

  // Room for a snapshot of so many tokens and bytes, its image to be filled, by dropping old ones. None, and nothing dropped, where it is larger than the whole
  // budget.
  std::optional<Snapshot> MakeRoom(int64_t tokens, int64_t image_bytes);
  SnapshotId Add(Snapshot snapshot);    // for which room was made last
  const Snapshot* Find(SnapshotId id);  // and counts as its use; null where it was dropped
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    Snapshot snapshot;
    int64_t used;  // at this time
  };
  char* TakeBlock();

  int64_t budget_, bytes_ = 0, time_ = 0;
  SnapshotId next_ = 1;
  std::map<SnapshotId, Entry> entries_;
  DeviceMemory* device_;
  std::vector<char*> blocks_, free_blocks_;
};

}  // namespace bamba
