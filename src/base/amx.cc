#include "base/amx.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace bamba {

bool AllowAmx() {
  // Linux, Documentation/arch/x86/xstate.rst. The C library has no function for it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace bamba
