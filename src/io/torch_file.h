#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "io/stored_tensor.h"
#include "io/zip.h"

namespace bamba {

// The tensors of a file that torch.save wrote from a state dict (a zip archive of a pickle and one entry for each storage), as views into `bytes`.
// Throws Error naming `where`: for the format before PyTorch 1.6, tensors that are not contiguous or reach past their storage, and all that is damaged.
std::vector<StoredTensor> ParseTorchFile(std::span<const char> bytes, const std::string& where);

// Writes such a file. Tensors come in the order of `entries`; one with `same_as` shares the storage of that earlier entry, as tied weights do.
class TorchWriter {
 public:
  struct Entry {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;
    std::string same_as;
  };

  TorchWriter(const std::string& path, std::vector<Entry> entries);

  // The next entry's bytes, in pieces of any size; entries with same_as have none.
  void Write(const void* data, size_t bytes);
  void Commit();  // nothing is under `path` before

 private:
  void BeginNext();  // ends what is complete

  std::vector<Entry> entries_;
  ZipWriter zip_;
  size_t next_ = 0;  // entry to begin
  size_t due_ = 0;   // bytes of the one begun
  bool open_ = false;
};

}  // namespace bamba
