#include "ops/op_table.h"

namespace bamba::ref {

const OpTable kTable = {"ref", BAMBA_OPS(BAMBA_TABLE_ENTRY)};

}  // namespace bamba::ref
