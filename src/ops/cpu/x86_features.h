#pragma once

namespace bamba::cpu {

// Whether the processor has the instructions and the system saves their registers. For AMX the first call asks the system for leave, for the whole process.
bool HasAvx512Bf16();  // VDPBF16PS, with AVX-512 F, BW and VL
bool HasAmxBf16();     // TDPBF16PS
bool HasAmxInt8();     // TDPBUSD and its kin

}  // namespace bamba::cpu
