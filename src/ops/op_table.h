#pragma once

#include "ops/ops.h"

// Every op once: tables of devices, their declarations and the measuring device are made from these lists.
#define BAMBA_FORWARD_OPS(X) \
  X(Embed)                   \
  X(Linear)                  \
  X(Linears)                 \
  X(RmsNorm)                 \
  X(AddRmsNorm)              \
  X(CausalConvSilu)          \
  X(SsdScan)                 \
  X(GatedRmsNorm)            \
  X(Rope)                    \
  X(Attention)               \
  X(SwiGlu)                  \
  X(KeepRows)                \
  X(CrossEntropy)            \
  X(Scale)                   \
  X(Zero)
#define BAMBA_BACKWARD_OPS(X) \
  X(EmbedBackward)            \
  X(LinearBackward)           \
  X(RmsNormBackward)          \
  X(AddRmsNormBackward)       \
  X(CausalConvSiluBackward)   \
  X(SsdScanBackward)          \
  X(GatedRmsNormBackward)     \
  X(RopeBackward)             \
  X(AttentionBackward)        \
  X(SwiGluBackward)           \
  X(CrossEntropyBackward)
// What a device may have in one piece, where ops.cc calls the parts if it doesn't.
#define BAMBA_FUSED_OPS(X) \
  X(ConvScan)               \
  X(SwiGluLinears)
#define BAMBA_OPS(X) BAMBA_FORWARD_OPS(X) BAMBA_BACKWARD_OPS(X)

namespace bamba {

// A device is the table of its ops; a missing one is a link error, never a slow path. A device that doesn't train has no backward ops.
struct OpTable {
  const char* name;
#define BAMBA_OP_MEMBER(op) decltype(&ops::op) op;
  BAMBA_FORWARD_OPS(BAMBA_OP_MEMBER)
#undef BAMBA_OP_MEMBER
#define BAMBA_OP_MEMBER(op) decltype(&ops::op) op = nullptr;
  BAMBA_BACKWARD_OPS(BAMBA_OP_MEMBER)
  BAMBA_FUSED_OPS(BAMBA_OP_MEMBER)
#undef BAMBA_OP_MEMBER
};

// Declares every op in the device's own namespace with the signature of ops.h.
#define BAMBA_DECLARE_OP(op) decltype(ops::op) op;
#define BAMBA_TABLE_ENTRY(op) &op,

namespace cpu {
BAMBA_OPS(BAMBA_DECLARE_OP)
extern const OpTable kTable;
}  // namespace cpu

namespace cuda {  // in libbamba_cuda.so, see OpenCuda
BAMBA_FORWARD_OPS(BAMBA_DECLARE_OP)
BAMBA_FUSED_OPS(BAMBA_DECLARE_OP)
extern const OpTable kTable;
}  // namespace cuda

namespace ref {  // double and complex arithmetic; linked into tests only
BAMBA_OPS(BAMBA_DECLARE_OP)
extern const OpTable kTable;
}  // namespace ref

// Ops that do nothing: a forward or backward run on it, with a measuring Workspace, is the memory plan of the real run.
extern const OpTable kMeasuringTable;

}  // namespace bamba
