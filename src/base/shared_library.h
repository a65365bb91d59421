#pragma once

#include <string>

namespace bamba {

// A library that is opened while the program runs, and stays open. Null, and the system's reason, where it can't be.
void* OpenSharedLibrary(const std::string& path, std::string* reason);

// A function or variable of it; null where it has none of that name.
void* FindSymbol(void* library, const char* name);

}  // namespace bamba
