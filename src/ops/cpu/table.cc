#include "ops/op_table.h"

namespace bamba::cpu {

const OpTable kTable = {"cpu", BAMBA_OPS(BAMBA_TABLE_ENTRY)};

}  // namespace bamba::cpu
