#pragma once

namespace bamba {

// Asks the system for leave to use the registers of AMX ("tile data") in all of the process's threads; without it the first such instruction ends the process.
// False where the processor or the kernel has none, or refuses.
bool AllowAmx();

}  // namespace bamba
