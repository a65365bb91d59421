#pragma once

#include "ops/ops.h"

// Every op once: tables of devices, their declarations and the measuring device are made from this list.
#define BAMBA_OPS(X)        \
  X(Embed)                  \
  X(EmbedBackward)          \
  X(Linear)                 \
  X(LinearBackward)         \
  X(RmsNorm)                \
  X(RmsNormBackward)        \
  X(AddRmsNorm)             \
  X(AddRmsNormBackward)     \
  X(CausalConvSilu)         \
  X(CausalConvSiluBackward) \
  X(SsdScan)                \
  X(SsdScanBackward)        \
  X(GatedRmsNorm)           \
  X(GatedRmsNormBackward)   \
  X(Rope)                   \
  X(RopeBackward)           \
  X(Attention)              \
  X(AttentionBackward)      \
  X(SwiGlu)                 \
  X(SwiGluBackward)         \
  X(CrossEntropy)           \
  X(CrossEntropyBackward)   \
  X(Scale)                  \
  X(Zero)

namespace bamba {

// A device is the table of its ops; a missing one is a link error, never a slow path.
struct OpTable {
  const char* name;
#define BAMBA_OP_MEMBER(op) decltype(&ops::op) op;
  BAMBA_OPS(BAMBA_OP_MEMBER)
#undef BAMBA_OP_MEMBER
};

// Declares every op in the device's own namespace with the signature of ops.h.
#define BAMBA_DECLARE_OP(op) decltype(ops::op) op;
#define BAMBA_TABLE_ENTRY(op) &op,

namespace cpu {
BAMBA_OPS(BAMBA_DECLARE_OP)
extern const OpTable kTable;
}  // namespace cpu

namespace ref {  // double and complex arithmetic; linked into tests only
BAMBA_OPS(BAMBA_DECLARE_OP)
extern const OpTable kTable;
}  // namespace ref

// Ops that do nothing: a forward or backward run on it, with a measuring Workspace, is the memory plan of the real run.
extern const OpTable kMeasuringTable;

}  // namespace bamba
