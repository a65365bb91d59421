#include "base/shared_library.h"

#include <dlfcn.h>

namespace bamba {

void* OpenSharedLibrary(const std::string& path, std::string* reason) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library && reason) *reason = dlerror();
  return library;
}

void* FindSymbol(void* library, const char* name) { return dlsym(library, name); }

}  // namespace bamba
