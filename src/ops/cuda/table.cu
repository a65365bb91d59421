#include "ops/op_table.h"

namespace bamba::cuda {

const OpTable kTable = {"cuda", BAMBA_FORWARD_OPS(BAMBA_TABLE_ENTRY)};

}  // namespace bamba::cuda
