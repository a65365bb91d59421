#pragma once

#include <cstdint>

namespace bamba::cpu {

// Does `rounds` rounds of nothing but one kind of arithmetic, in registers, and returns the operations: two for each product that is added.
using ArithmeticKernel = double (*)(int64_t rounds);

// Null where the processor or the system lacks the instructions.
ArithmeticKernel Bf16DotKernel();   // VDPBF16PS: pairs of bf16, sums in f32
ArithmeticKernel Int8DotKernel();   // VPDPBUSD: fours of u8 · s8, sums in i32
ArithmeticKernel Bf16TileKernel();  // AMX: TDPBF16PS
ArithmeticKernel Int8TileKernel();  // AMX: TDPBUSD

}  // namespace bamba::cpu
