#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "model/bamba.h"

namespace bamba {

// How much state a pool holds.
struct PoolSize {
  int32_t slots = 1;           // sequences at a time
  int64_t pages = 0;           // of kKvBlock tokens, shared by all sequences; a model without attention needs none
  bool roll_back = false;      // keep what RollBack needs: rings of 2 · kSsdChunk tokens and a second boundary state
  Dtype inputs = Dtype::kF32;  // of all but boundary states, which are f32: the activations' (ops/context.h)
};

// Pages that hold the keys and values of `tokens` tokens.
int64_t PagesFor(int64_t tokens);

// A sequence in a pool: the tokens it has seen, and where their state lies.
struct SequenceState {
  int32_t slot = -1;
  int64_t position = 0;        // tokens so far
  int64_t furthest = 0;        // the largest position it ever had: what the rings reach back from
  std::vector<int32_t> pages;  // page table; empty for a model without attention
};

// The state of sequences: a slot for each one's Mamba-2 mixers, and pages of keys and values for the attention mixers. All of it is taken at the start, in
// one buffer whose untouched pages cost nothing.
class StatePool {
 public:
  // In the host's memory or the device's. Throws Error where there is no room.
  StatePool(const Config& config, PoolSize size, DeviceMemory* device = nullptr);

  // Bytes that a pool takes from the system at most.
  static size_t Bytes(const Config& config, PoolSize size);

  // What Forward reads and advances.
  States& states() { return states_; }

  std::optional<SequenceState> Allocate();  // an empty sequence; none where all slots are taken
  void Free(SequenceState& sequence);

  // Gives the sequence pages for `tokens` more tokens. False, and nothing changed, where the pool has too few.
  bool Grow(SequenceState& sequence, int64_t tokens);

  // The batch's entry for the sequence's next `rows` tokens at `row`; it points into the sequence's page table. Advance after Forward.
  static Sequence Entry(const SequenceState& sequence, int64_t row, int64_t rows);
  static void Advance(SequenceState& sequence, int64_t rows);

  // Another sequence of the same tokens and state, copied. None, and nothing changed, where there is no slot or the pages don't suffice.
  std::optional<SequenceState> Fork(const SequenceState& sequence);

  // Forgets the last n tokens. Only of a pool with `roll_back`, and to no position before Reach.
  void RollBack(SequenceState& sequence, int64_t n) const;
  // The first position that RollBack can go to: kSsdChunk tokens before the furthest; without `roll_back` the present one.
  int64_t Reach(const SequenceState& sequence) const;

  // The state of a sequence as bytes that depend on its tokens alone, not on where it lies or how it came there: what is needed to go on at `position`, and to
  // go back to any position from `reach` on. For each sub-block in order: conv inputs, xbc and dt of the tokens since the boundary, boundary states; keys,
  // values. As ops/batch.h describes them.
  int64_t ImageBytes(int64_t position, int64_t reach) const;
  // Gives the image out piece by piece. reach from Reach(sequence) to its position.
  void Save(const SequenceState& sequence, int64_t reach, const std::function<void(const void*, size_t)>& write) const;
  // Makes `sequence`, which keeps its slot, the one whose image this is. False, and nothing changed, where the pool has too few pages.
  bool Restore(SequenceState& sequence, int64_t position, int64_t reach, std::span<const char> image);
  // The same with an image in parts, which are as long together. Where a device has the state they are memory of its AllocateHost, and it copies in the order
  // of its work: nobody waits.
  void Save(const SequenceState& sequence, int64_t reach, std::span<const std::span<char>> parts) const;
  bool Restore(SequenceState& sequence, int64_t position, int64_t reach, std::span<const std::span<char>> parts);

 private:
  bool MoveTo(SequenceState& sequence, int64_t position, int64_t reach);
  template <typename F>
  void ForEachPart(const SequenceState& sequence, int64_t reach, std::span<const std::span<char>> parts, const F& copy) const;
  template <typename Visit>
  void ForEachPiece(const SequenceState& sequence, int64_t reach, const Visit& visit) const;

  Config config_;
  bool attention_;
  PoolSize size_;
  DeviceMemory* device_;
  Workspace memory_;
  States states_;
  std::vector<int32_t> free_slots_, free_pages_;
};

}  // namespace bamba
