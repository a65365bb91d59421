// Any bytes as a safetensors file: refused with an Error, or every tensor's bytes can be read.
#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    volatile char sink = 0;
    for (const bamba::StoredTensor& t : bamba::ParseSafetensors({reinterpret_cast<const char*>(data), size}, "input").tensors)
      for (size_t i = 0; t.tensor && i < t.tensor.bytes(); i++) sink = static_cast<const char*>(t.tensor.data())[i];
    static_cast<void>(sink);
  } catch (const bamba::Error&) {
  }
  return 0;
}
