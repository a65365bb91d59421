#include "ops/op_table.h"

namespace bamba::cuda {

const OpTable kTable = [] {
  OpTable table = {"cuda", BAMBA_FORWARD_OPS(BAMBA_TABLE_ENTRY)};
  table.ConvScan = &ConvScan;
  table.SwiGluLinears = &SwiGluLinears;
  return table;
}();

}  // namespace bamba::cuda
