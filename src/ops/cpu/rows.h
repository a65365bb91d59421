#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/batch.h"

namespace bamba::cpu {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many items of a parallel loop make a piece that is worth another thread's waking, where an item takes about `operations` multiply-adds (an exp counts for
// some 10). A loop of one piece stays on the caller.
inline int64_t Grain(int64_t operations) {
  constexpr int64_t kPiece = 1 << 17;  // some 20 µs
  return std::max<int64_t>(1, kPiece / std::max<int64_t>(1, operations));
}

// Calls body(sequence, first, last) for the runs [first, last) of the batch's rows [begin, end) that belong to one sequence each.
template <typename Body>
void ForSequences(const Batch& batch, int64_t begin, int64_t end, const Body& body) {
  auto s = std::upper_bound(batch.sequences.begin(), batch.sequences.end(), begin, [](int64_t row, const Sequence& s) { return row < s.row + s.rows; });
  for (; begin < end; ++s) {
    const int64_t last = std::min(end, s->row + s->rows);
    if (begin < last) body(*s, begin, last);
    begin = last;
  }
}

// Where a ring [slots, length, columns] keeps a token.
inline float* RingRow(const Tensor& ring, int64_t slot, int64_t token) {
  return ring.as<float>() + slot * ring.stride(0) + token % ring.shape(1) * ring.stride(1);
}

// Calls body(token) for the tokens of a sequence's rows that are kept in a ring of this length: the last ones.
template <typename Body>
void ForKeptTokens(const Sequence& s, int64_t length, const Body& body) {
  const int64_t end = s.position + s.rows;
  for (int64_t token = std::max(s.position, end - length); token < end; token++) body(token);
}

}  // namespace bamba::cpu
