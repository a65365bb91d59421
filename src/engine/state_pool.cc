#include "engine/state_pool.h"

#include <algorithm>

#include "base/check.h"

namespace bamba {
namespace {

States TakeStates(const Config& c, const PoolSize& size, Workspace& memory) {
  const int64_t history = size.roll_back ? kSsdChunk : 0;
  const int64_t conv_ring = std::max<int64_t>(1, c.d_conv - 1) + history, scan_ring = kSsdChunk + history, boundaries = size.roll_back ? 2 : 1;
  States states{std::vector<MambaState>(c.blocks.size()), std::vector<KvPages>(c.blocks.size())};
  for (size_t i = 0; i < c.blocks.size(); i++) {
    if (c.blocks[i] == BlockKind::kMamba2) {
      states.mamba[i] = {.conv = memory.Take(Dtype::kF32, {size.slots, conv_ring, c.conv_dim()}),
                         .xbc = memory.Take(Dtype::kF32, {size.slots, scan_ring, c.conv_dim()}),
                         .dt = memory.Take(Dtype::kF32, {size.slots, scan_ring, c.mamba_heads}),
                         .ssm = memory.Take(Dtype::kF32, {size.slots, boundaries, c.mamba_heads, c.mamba_head_dim, c.mamba_state})};
    } else if (c.blocks[i] == BlockKind::kAttention) {
      states.kv[i] = {.k = memory.Take(Dtype::kF32, {size.pages, kKvBlock, c.kv_heads, c.head_dim}),
                      .v = memory.Take(Dtype::kF32, {size.pages, kKvBlock, c.kv_heads, c.head_dim})};
    }
  }
  return states;
}

// Taken from the back: the lowest first.
std::vector<int32_t> Descending(int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) ids[static_cast<size_t>(i)] = static_cast<int32_t>(n - 1 - i);
  return ids;
}

}  // namespace

int64_t PagesFor(int64_t tokens) { return (tokens + kKvBlock - 1) / kKvBlock; }

size_t StatePool::Bytes(const Config& config, PoolSize size) {
  Workspace measuring = Workspace::Measuring();
  TakeStates(config, size, measuring);
  return measuring.high_water();
}

StatePool::StatePool(const Config& config, PoolSize size)
    : attention_(config.Count(BlockKind::kAttention) > 0),
      size_(size),
      memory_(Bytes(config, size)),
      states_(TakeStates(config, size, memory_)),
      free_slots_(Descending(size.slots)),
      free_pages_(Descending(size.pages)) {}

std::optional<SequenceState> StatePool::Allocate() {
  if (free_slots_.empty()) return std::nullopt;
  SequenceState sequence{.slot = free_slots_.back()};
  free_slots_.pop_back();
  return sequence;
}

void StatePool::Free(SequenceState& sequence) {
  CHECK_MSG(sequence.slot >= 0 && sequence.slot < size_.slots, "slot {} of {}", sequence.slot, size_.slots);
  free_slots_.push_back(sequence.slot);
  free_pages_.insert(free_pages_.end(), sequence.pages.rbegin(), sequence.pages.rend());
  sequence = {};
}

bool StatePool::Grow(SequenceState& sequence, int64_t tokens) {
  if (!attention_) return true;
  const int64_t missing = PagesFor(sequence.position + tokens) - static_cast<int64_t>(sequence.pages.size());
  if (missing > static_cast<int64_t>(free_pages_.size())) return false;
  for (int64_t i = 0; i < missing; i++) {
    sequence.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  return true;
}

Sequence StatePool::Entry(const SequenceState& sequence, int64_t row, int64_t rows) {
  return {.row = row, .rows = rows, .position = sequence.position, .slot = sequence.slot, .pages = sequence.pages.empty() ? nullptr : sequence.pages.data()};
}

void StatePool::Advance(SequenceState& sequence, int64_t rows) {
  sequence.position += rows;
  sequence.furthest = std::max(sequence.furthest, sequence.position);
}

void StatePool::RollBack(SequenceState& sequence, int64_t n) const {
  const int64_t position = sequence.position - n;
  CHECK_MSG(size_.roll_back && n >= 0 && position >= 0 && sequence.furthest - position <= kSsdChunk, "from {} to {}, once at {}", sequence.position, position,
            sequence.furthest);
  sequence.position = position;
}

}  // namespace bamba
