#include "engine/snapshot_store.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace bamba {

bool SnapshotStore::MakeRoom(int64_t bytes) {
  if (bytes > budget_) return false;
  while (bytes_ + bytes > budget_) {
    const auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
    bytes_ -= oldest->second.snapshot.bytes();
    entries_.erase(oldest);
  }
  return true;
}

SnapshotId SnapshotStore::Add(Snapshot snapshot) {
  bytes_ += snapshot.bytes();
  CHECK_MSG(bytes_ <= budget_, "{} bytes of {}", bytes_, budget_);
  entries_.emplace(next_, Entry{std::move(snapshot), ++time_});
  return next_++;
}

const Snapshot* SnapshotStore::Find(SnapshotId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return nullptr;
  found->second.used = ++time_;
  return &found->second.snapshot;
}

}  // namespace bamba
