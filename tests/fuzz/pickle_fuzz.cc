// Any bytes as a file of torch.save, and as the pickle in one: refused with an Error, or every tensor's bytes can be read.
#include "base/error.h"
#include "io/pickle.h"
#include "io/torch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const char> bytes(reinterpret_cast<const char*>(data), size);
  try {
    bamba::ParsePickle(bytes, "input");
  } catch (const bamba::Error&) {
  }
  try {
    volatile char sink = 0;
    for (const bamba::StoredTensor& t : bamba::ParseTorchFile(bytes, "input"))
      for (size_t i = 0; t.tensor && i < t.tensor.bytes(); i++) sink = static_cast<const char*>(t.tensor.data())[i];
    static_cast<void>(sink);
  } catch (const bamba::Error&) {
  }
  return 0;
}
