#include <algorithm>
#include <filesystem>
#include <iterator>
#include <vector>

#include "base/error.h"
#include "base/executable.h"
#include "base/shared_library.h"
#include "ops/accelerator.h"

namespace bamba {
namespace {

constexpr const char* kLibrary = "libbamba_cuda.so";
constexpr const char* kEntry = "BambaOpenCuda";  // Accelerator*(const char** reason): src/ops/cuda/state.cu

// Where the library may lie: beside the program (a build), in the lib folders of the prefix that the program is installed under, where the loader looks.
std::vector<std::string> Places() {
  const std::filesystem::path program = ExecutablePath(), folder = program.parent_path();
  std::vector<std::string> places;
  if (!folder.empty()) {
    for (const char* place : {".", "..", "../lib/bamba", "../lib/x86_64-linux-gnu/bamba", "../lib64/bamba"}) {
      const auto path = folder / place / kLibrary;
      std::error_code ignored;
      if (std::filesystem::exists(path, ignored)) places.push_back(path.string());
    }
  }
  places.emplace_back(kLibrary);
  return places;
}

Accelerator* Open(std::string* reason) {
  std::error_code ignored;
  // Opening the toolkit's run-time library on a machine without a driver takes longer than the whole program.
  constexpr const char* kSigns[] = {"/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia", "/dev/dxg"};
  if (std::none_of(std::begin(kSigns), std::end(kSigns), [&](const char* sign) { return std::filesystem::exists(sign, ignored); })) {
    *reason = "this machine shows no NVIDIA GPU (neither /dev/nvidiactl nor /proc/driver/nvidia is there)";
    return nullptr;
  }
  void* library = nullptr;
  for (const std::string& place : Places()) {
    std::string why;
    library = OpenSharedLibrary(place, &why);
    if (library) break;
    if (reason->empty() || place != kLibrary) *reason = why;
  }
  if (!library) {
    *reason = "the CUDA device can't be opened: " + *reason + " (it is built where CMake finds nvcc)";
    return nullptr;
  }
  const auto open = reinterpret_cast<Accelerator* (*)(const char**)>(FindSymbol(library, kEntry));
  if (!open) {
    *reason = std::string(kLibrary) + " is not of this version of bamba: it has no " + kEntry;
    return nullptr;
  }
  const char* why = nullptr;
  Accelerator* accelerator = open(&why);
  if (!accelerator) *reason = why;
  return accelerator;
}

}  // namespace

Accelerator* OpenCuda(std::string* reason) {
  static std::string why;
  static Accelerator* const accelerator = Open(&why);
  if (!accelerator && reason) *reason = why;
  return accelerator;
}

}  // namespace bamba
