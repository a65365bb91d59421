#include "engine/state_pool.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace bamba {
namespace {

States TakeStates(const Config& c, const PoolSize& size, Workspace& memory) {
  const int64_t history = size.roll_back ? kSsdChunk : 0;
  // One input more than the next row needs: a GPU stores a row's own while it reads those before.
  const int64_t conv_ring = c.d_conv + history, scan_ring = kSsdChunk + history, boundaries = size.roll_back ? 2 : 1;
  States states{std::vector<MambaState>(c.blocks.size()), std::vector<KvPages>(c.blocks.size())};
  for (size_t i = 0; i < c.blocks.size(); i++) {
    if (c.blocks[i] == BlockKind::kMamba2) {
      states.mamba[i] = {.conv = memory.Take(size.inputs, {size.slots, conv_ring, c.conv_dim()}),
                         .xbc = memory.Take(size.inputs, {size.slots, scan_ring, c.conv_dim()}),
                         .dt = memory.Take(size.inputs, {size.slots, scan_ring, c.mamba_heads}),
                         .ssm = memory.Take(Dtype::kF32, {size.slots, boundaries, c.mamba_heads, c.mamba_head_dim, c.mamba_state})};
    } else if (c.blocks[i] == BlockKind::kAttention) {
      states.kv[i] = {.k = memory.Take(size.inputs, {size.pages, kKvBlock, c.kv_heads, c.head_dim}),
                      .v = memory.Take(size.inputs, {size.pages, kKvBlock, c.kv_heads, c.head_dim})};
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

int64_t Boundary(int64_t position) { return position - position % kSsdChunk; }

// The first token whose conv input the token at `position` needs.
int64_t FirstConvInput(const Config& c, int64_t position) { return std::max<int64_t>(0, position - (c.d_conv - 1)); }

}  // namespace

int64_t PagesFor(int64_t tokens) { return (tokens + kKvBlock - 1) / kKvBlock; }

size_t StatePool::Bytes(const Config& config, PoolSize size) {
  Workspace measuring = Workspace::Measuring();
  TakeStates(config, size, measuring);
  return measuring.high_water();
}

StatePool::StatePool(const Config& config, PoolSize size, DeviceMemory* device)
    : config_(config),
      attention_(config.Count(BlockKind::kAttention) > 0),
      size_(size),
      device_(device),
      memory_(Bytes(config, size), device),
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

std::optional<SequenceState> StatePool::Fork(const SequenceState& sequence) {
  std::optional<SequenceState> fork = Allocate();
  if (!fork) return std::nullopt;
  if (!Grow(*fork, sequence.position)) return Free(*fork), std::nullopt;
  fork->position = sequence.position, fork->furthest = sequence.furthest;
  const auto copy = [&](const Tensor& t, int64_t from, int64_t to) {
    const Tensor source = t.At(from), target = t.At(to);
    device_ ? device_->Copy(target.data(), source.data(), source.bytes()) : void(std::memcpy(target.data(), source.data(), source.bytes()));
  };
  for (const MambaState& mamba : states_.mamba)
    if (mamba.ssm)
      for (const Tensor& t : {mamba.conv, mamba.xbc, mamba.dt, mamba.ssm}) copy(t, sequence.slot, fork->slot);
  for (const KvPages& kv : states_.kv)
    if (kv.k)
      for (const Tensor& t : {kv.k, kv.v})
        for (size_t i = 0; i < fork->pages.size(); i++) copy(t, sequence.pages[i], fork->pages[i]);
  return fork;
}

void StatePool::RollBack(SequenceState& sequence, int64_t n) const {
  const int64_t position = sequence.position - n;
  CHECK_MSG(n >= 0 && position >= Reach(sequence), "from {} to {}, once at {}", sequence.position, position, sequence.furthest);
  sequence.position = position;
}

int64_t StatePool::Reach(const SequenceState& sequence) const {
  return size_.roll_back ? std::max<int64_t>(0, sequence.furthest - kSsdChunk) : sequence.position;
}

int64_t StatePool::ImageBytes(int64_t position, int64_t reach) const {
  const Config& c = config_;
  const int64_t conv = (position - FirstConvInput(c, reach)) * c.conv_dim(), scan = (position - Boundary(reach)) * (c.conv_dim() + c.mamba_heads);
  const int64_t boundaries = position / kSsdChunk - reach / kSsdChunk + (reach >= kSsdChunk ? 1 : 0);
  const auto input = static_cast<int64_t>(SizeOf(size_.inputs)), state = static_cast<int64_t>(sizeof(float));
  const int64_t mamba = input * (conv + scan) + state * boundaries * c.inner() * c.mamba_state, attention = input * 2 * position * c.kv_heads * c.head_dim;
  return c.Count(BlockKind::kMamba2) * mamba + c.Count(BlockKind::kAttention) * attention;
}

// Oldest first: where an image reaches further back than this pool's rings, newer entries replace the older ones.
template <typename Visit>
void StatePool::ForEachPiece(const SequenceState& sequence, int64_t reach, const Visit& visit) const {
  const int64_t end = sequence.position;
  const auto ring = [&](const Tensor& t, int64_t first) {
    const Tensor entries = t.At(sequence.slot);
    const int64_t length = entries.shape(0), of_token = entries.size() / length;
    const Tensor rows(entries.data(), entries.dtype(), {length, of_token});
    for (int64_t token = first, run; token < end; token += run) {
      run = std::min(length - token % length, end - token);
      visit(rows.Rows(token % length, run));
    }
  };
  const auto pages = [&](const Tensor& t) {
    for (int64_t token = 0; token < end; token += kKvBlock)
      visit(t.At(sequence.pages[static_cast<size_t>(token / kKvBlock)]).Rows(0, std::min(kKvBlock, end - token)));
  };
  for (size_t i = 0; i < config_.blocks.size(); i++) {
    if (config_.blocks[i] == BlockKind::kMamba2) {
      const MambaState& state = states_.mamba[i];
      ring(state.conv, FirstConvInput(config_, reach));
      ring(state.xbc, Boundary(reach));
      ring(state.dt, Boundary(reach));
      const Tensor boundaries = state.ssm.At(sequence.slot);
      for (int64_t b = std::max(kSsdChunk, Boundary(reach)); b <= end; b += kSsdChunk) visit(boundaries.At(b / kSsdChunk % boundaries.rows()));
    } else if (config_.blocks[i] == BlockKind::kAttention) {
      pages(states_.kv[i].k);
      pages(states_.kv[i].v);
    }
  }
}

void StatePool::Save(const SequenceState& sequence, int64_t reach, const std::function<void(const void*, size_t)>& write) const {
  CHECK_MSG(Reach(sequence) <= reach && reach <= sequence.position, "reach of {} at {}, once at {}", reach, sequence.position, sequence.furthest);
  std::vector<char> from_device;
  ForEachPiece(sequence, reach, [&](const Tensor& piece) {
    if (!device_) return write(piece.data(), piece.bytes());
    from_device.resize(piece.bytes());
    device_->Download(from_device.data(), piece.data(), piece.bytes());
    write(from_device.data(), piece.bytes());
  });
}

// Calls copy(piece's address, part's, bytes) for the bytes of an image's pieces and the parts that they lie in, one after the other.
template <typename F>
void StatePool::ForEachPart(const SequenceState& sequence, int64_t reach, std::span<const std::span<char>> parts, const F& copy) const {
  std::span<char> part;
  ForEachPiece(sequence, reach, [&](const Tensor& piece) {
    for (size_t done = 0, n; done < piece.bytes(); done += n) {
      if (part.empty()) {
        CHECK(!parts.empty());
        part = parts.front(), parts = parts.subspan(1);
      }
      n = std::min(part.size(), piece.bytes() - done);
      copy(static_cast<char*>(piece.data()) + done, part.data(), n);
      part = part.subspan(n);
    }
  });
  CHECK(part.empty() && parts.empty());
}

void StatePool::Save(const SequenceState& sequence, int64_t reach, std::span<const std::span<char>> parts) const {
  CHECK_MSG(Reach(sequence) <= reach && reach <= sequence.position, "reach of {} at {}, once at {}", reach, sequence.position, sequence.furthest);
  ForEachPart(sequence, reach, parts,
              [&](char* piece, char* part, size_t n) { device_ ? device_->DownloadLater(part, piece, n) : void(std::memcpy(part, piece, n)); });
}

bool StatePool::Restore(SequenceState& sequence, int64_t position, int64_t reach, std::span<const std::span<char>> parts) {
  if (!MoveTo(sequence, position, reach)) return false;
  ForEachPart(sequence, reach, parts,
              [&](char* piece, char* part, size_t n) { device_ ? device_->UploadLater(piece, part, n) : void(std::memcpy(piece, part, n)); });
  return true;
}

bool StatePool::MoveTo(SequenceState& sequence, int64_t position, int64_t reach) {
  if (!Grow(sequence, std::max<int64_t>(0, position - sequence.position))) return false;
  sequence.position = position;
  sequence.furthest = reach > 0 ? reach + kSsdChunk : position;
  return true;
}

bool StatePool::Restore(SequenceState& sequence, int64_t position, int64_t reach, std::span<const char> image) {
  CHECK_EQ(static_cast<int64_t>(image.size()), ImageBytes(position, reach));
  if (!MoveTo(sequence, position, reach)) return false;
  ForEachPiece(sequence, reach, [&](const Tensor& piece) {
    device_ ? device_->Upload(piece.data(), image.data(), piece.bytes()) : void(std::memcpy(piece.data(), image.data(), piece.bytes()));
    image = image.subspan(piece.bytes());
  });
  CHECK(image.empty());
  return true;
}

}  // namespace bamba
