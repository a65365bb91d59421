#include "engine/snapshot_store.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace bamba {

SnapshotStore::~SnapshotStore() {
  if (blocks_.empty()) return;
  device_->Wait();
  for (char* block : blocks_) device_->FreeHost(block);
}

char* SnapshotStore::TakeBlock() {
  if (free_blocks_.empty()) {
    blocks_.push_back(static_cast<char*>(device_->AllocateHost(kBlock)));
    return blocks_.back();
  }
  char* const block = free_blocks_.back();
  free_blocks_.pop_back();
  return block;
}

std::optional<Snapshot> SnapshotStore::MakeRoom(int64_t tokens, int64_t image_bytes) {
  const int64_t blocks = (image_bytes + kBlock - 1) / kBlock;
  Snapshot snapshot{.bytes = tokens * static_cast<int64_t>(sizeof(int32_t)) + (device_ ? blocks * kBlock : image_bytes)};
  if (snapshot.bytes > budget_) return std::nullopt;
  while (bytes_ + snapshot.bytes > budget_) {
    const auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
    bytes_ -= oldest->second.snapshot.bytes;
    if (device_)
      for (const std::span<char> block : oldest->second.snapshot.image) free_blocks_.push_back(block.data());
    entries_.erase(oldest);
  }
  if (!device_) {
    snapshot.memory = Buffer(static_cast<size_t>(image_bytes));
    snapshot.image = {{snapshot.memory.data(), static_cast<size_t>(image_bytes)}};
    return snapshot;
  }
  for (int64_t left = image_bytes; left > 0; left -= kBlock) snapshot.image.emplace_back(TakeBlock(), static_cast<size_t>(std::min(left, kBlock)));
  return snapshot;
}

SnapshotId SnapshotStore::Add(Snapshot snapshot) {
  bytes_ += snapshot.bytes;
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
