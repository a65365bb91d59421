#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace bamba {

// A tensor as a pickle of torch.save describes it; its numbers are in the storage that `storage` names.
struct PickledTensor {
  std::string name;
  std::string dtype;    // as safetensors spells it
  std::string storage;  // key
  int64_t storage_elements = 0;
  int64_t offset = 0;  // elements
  std::vector<int64_t> shape, stride;
};

// The state dict in a pickle of protocol 2 as torch.save writes it: name → tensor, at the top or under the key "model_state" (fms-fsdp). Other entries beside
// tensors (numbers, strings) are skipped. Interprets the few opcodes that occur and executes nothing: a class or function other than the known ones of torch is
// refused by name. Throws Error naming `where`.
std::vector<PickledTensor> ParsePickle(std::span<const char> bytes, const std::string& where);

// The pickle of a state dict of contiguous tensors; what ParsePickle reads back, and torch.load(weights_only=True).
std::string FormatPickle(const std::vector<PickledTensor>& tensors);

}  // namespace bamba
