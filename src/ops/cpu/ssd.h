#pragma once

#include "ops/cpu/rows.h"
#include "ops/ops.h"

namespace bamba::cpu {

// Floats of a state that one piece of work carries from chunk to chunk where the sequence has no slot.
inline constexpr int64_t kScanScratch = 16384;

// Heads that one piece of work takes at most.
inline constexpr int64_t kScanHeads = 4;

// Columns of a head's x, B and C in a row of the scan's input, and the length of B and C.
struct ScanShape {
  int64_t x, b, c, state;
};

struct HeadNumbers {
  float dt_bias, a_log, d, dt_min, dt_max;
};

// The operands of a scan, and where a sequence's numbers lie: those of this call in its matrices, older ones in the slot.
struct Scan {
  const Tensor &xbc, &dt, &dt_bias, &a_log, &d;
  const SsdShape& shape;
  const MambaState& state;
  const Tensor& y;
  const Tensor& scores;

  ScanShape ShapeOf(int64_t head) const {
    const int64_t b = shape.inner() + head / (shape.heads / shape.groups) * shape.state;
    return {head * shape.head_dim, b, b + shape.groups * shape.state, shape.state};
  }
  HeadNumbers NumbersOf(int64_t head) const {
    return {Element(dt_bias, head), Element(a_log, head), Element(d, head), static_cast<float>(shape.dt_min), static_cast<float>(shape.dt_max)};
  }
  bool Keeps(const Sequence& s) const { return state.ssm && s.slot >= 0; }
  const float* Input(const Sequence& s, int64_t token) const {
    return token < s.position ? RingRow(state.xbc, s.slot, token) : xbc.Row<float>(s.row + token - s.position);
  }
  float RawStep(const Sequence& s, int64_t token, int64_t head) const {
    return (token < s.position ? RingRow(state.dt, s.slot, token) : dt.Row<float>(s.row + token - s.position))[head];
  }
  // C_token · B_i for the tokens i of its chunk up to it, one after the other.
  float* Scores(const Sequence& s, int64_t token, int64_t head) const {
    return scores.Row<float>(s.row + token - s.position) + head / (shape.heads / shape.groups) * kSsdChunk;
  }
  float* Output(const Sequence& s, int64_t token) const { return y.Row<float>(s.row + token - s.position); }
  // S before token b, a chunk's first: [head_dim, state].
  float* Boundary(const Sequence& s, int64_t b, int64_t head) const {
    const Tensor& ssm = state.ssm;
    return ssm.as<float>() + s.slot * ssm.stride(0) + b / kSsdChunk % ssm.shape(1) * ssm.stride(1) + head * ssm.stride(2);
  }

 private:
  static float Element(const Tensor& t, int64_t i) {
    float value;
    Convert(static_cast<const char*>(t.data()) + static_cast<size_t>(i) * SizeOf(t.dtype()), t.dtype(), &value, Dtype::kF32, 1);
    return value;
  }
};

}  // namespace bamba::cpu
