#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/buffer.h"
#include "engine/state_pool.h"

namespace bamba {

using SnapshotId = int64_t;

// A text and its state at some time (StatePool::Save).
struct Snapshot {
  std::vector<int32_t> tokens;  // of which the model has read `position`
  int64_t position = 0, reach = 0;
  Buffer image;

  int64_t bytes() const { return static_cast<int64_t>(image.size() + tokens.size() * sizeof(int32_t)); }
};

// Snapshots of no more than a number of bytes together: for a new one, those used longest ago are dropped.
class SnapshotStore {
 public:
  explicit SnapshotStore(int64_t budget) : budget_(budget) {}

  // Room for a new snapshot of so many bytes, by dropping old ones. False, and nothing dropped, where it is larger than the whole budget.
  bool MakeRoom(int64_t bytes);
  SnapshotId Add(Snapshot snapshot);    // for which there must be room
  const Snapshot* Find(SnapshotId id);  // and counts as its use; null where it was dropped
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    Snapshot snapshot;
    int64_t used;  // at this time
  };
  int64_t budget_, bytes_ = 0, time_ = 0;
  SnapshotId next_ = 1;
  std::map<SnapshotId, Entry> entries_;
};

}  // namespace bamba
