#include "io/torch_file.h"

#include <unordered_map>

#include "base/error.h"
#include "base/units.h"
#include "io/pickle.h"

namespace bamba {
namespace {

constexpr size_t kMaxPickle = size_t{64} << 20;  // of tensor descriptions alone: some 200 bytes for each

bool Contiguous(const PickledTensor& t) {
  int64_t stride = 1;
  for (size_t d = t.shape.size(); d-- > 0;) {
    if (t.shape[d] != 1 && t.stride[d] != stride) return false;
    stride *= t.shape[d];  // checked by StoredBytes before
  }
  return true;
}

StoredTensor Locate(const PickledTensor& t, const std::unordered_map<std::string, std::span<const char>>& storages, std::span<const char> file,
                    const std::string& where) {
  CheckTensorName(t.name, where);
  const std::string label = fmt::format("{}: tensor '{}'", where, t.name);
  const auto it = storages.find(t.storage);
  if (it == storages.end()) throw Error("{} needs storage '{}', which the archive lacks", label, t.storage);
  const std::span<const char> data = it->second;
  const size_t element = StoredElementBytes(t.dtype);
  const auto bytes = StoredBytes(t.shape, element), storage_bytes = StoredBytes({t.storage_elements}, element), offset = StoredBytes({t.offset}, element);
  if (!bytes || !storage_bytes || !offset)
    throw Error("{} has the impossible shape {} at element {} of {}", label, ShapeString(t.shape), t.offset, t.storage_elements);
  if (data.size() != *storage_bytes)
    throw Error("{}: its storage has {} bytes; expected {} ({} {}). The file may be cut short: download or save it again", label,
                Thousands(static_cast<int64_t>(data.size())), Thousands(static_cast<int64_t>(*storage_bytes)), t.storage_elements, t.dtype);
  if (*bytes > 0 && !Contiguous(t))
    throw Error("{} is not contiguous (shape {}, strides {}); save it after .contiguous()", label, ShapeString(t.shape), ShapeString(t.stride));
  if (*offset > data.size() || *bytes > data.size() - *offset)
    throw Error("{} of shape {} reaches past its storage of {} elements", label, ShapeString(t.shape), t.storage_elements);
  const char* begin = data.data() + *offset;
  if ((begin - file.data()) % static_cast<ptrdiff_t>(element) != 0)
    throw Error("{} is not aligned to its {} bytes; save it again with a current PyTorch", label, element);
  return {t.name, t.dtype, t.shape, *bytes, where, ViewOf(begin, t.dtype, t.shape)};
}

}  // namespace

std::vector<StoredTensor> ParseTorchFile(std::span<const char> bytes, const std::string& where) {
  if (bytes.size() >= 2 && bytes[0] == '\x80')
    throw Error("{}: is in the format from before PyTorch 1.6; load it there and torch.save it again to get a zip archive", where);
  std::span<const char> pickle;
  std::string prefix;  // the archive's folder, such as "archive/"
  const std::vector<ZipEntry> entries = ParseZip(bytes, where);
  for (const ZipEntry& e : entries)
    if (e.name == "data.pkl" || e.name.ends_with("/data.pkl")) pickle = e.data, prefix = e.name.substr(0, e.name.size() - 8);
  if (pickle.empty()) throw Error("{}: has no data.pkl; expected a file that torch.save wrote", where);
  if (pickle.size() > kMaxPickle)
    throw Error("{}: its data.pkl has {}; expected at most {}", where, HumanBytes(static_cast<double>(pickle.size())), HumanBytes(kMaxPickle));
  std::unordered_map<std::string, std::span<const char>> storages;
  const std::string data = prefix + "data/";
  for (const ZipEntry& e : entries) {
    if (e.name.starts_with(data)) storages[e.name.substr(data.size())] = e.data;
    if (e.name == prefix + "byteorder" && std::string_view(e.data.data(), e.data.size()) != "little")
      throw Error("{}: its numbers are big-endian; save it on a little-endian machine", where);
  }
  std::vector<StoredTensor> tensors;
  for (const PickledTensor& t : ParsePickle(pickle, where)) tensors.push_back(Locate(t, storages, bytes, where));
  return tensors;
}

TorchWriter::TorchWriter(const std::string& path, std::vector<Entry> entries) : entries_(std::move(entries)), zip_(path) {
  std::unordered_map<std::string, std::string> keys;  // entry → storage
  std::vector<PickledTensor> described;
  for (const Entry& e : entries_) {
    PickledTensor t{.name = e.name, .dtype = StoredName(e.dtype), .storage_elements = 1, .shape = e.shape, .stride = std::vector<int64_t>(e.shape.size())};
    for (size_t d = e.shape.size(); d-- > 0;) t.stride[d] = t.storage_elements, t.storage_elements *= e.shape[d];
    const auto next = std::to_string(keys.size());
    t.storage = keys[e.name] = e.same_as.empty() ? next : keys.at(e.same_as);
    described.push_back(std::move(t));
  }
  zip_.Add("archive/data.pkl", FormatPickle(described));
  zip_.Add("archive/byteorder", "little");
  BeginNext();
}

void TorchWriter::BeginNext() {
  while (due_ == 0) {
    if (open_) zip_.End();
    open_ = false;
    while (next_ < entries_.size() && !entries_[next_].same_as.empty()) next_++;
    if (next_ == entries_.size()) return;
    zip_.Begin("archive/data/" + std::to_string(next_));
    open_ = true;
    due_ = *StoredBytes(entries_[next_].shape, SizeOf(entries_[next_].dtype));
    next_++;
  }
}

void TorchWriter::Write(const void* data, size_t bytes) {
  CHECK_MSG(bytes <= due_, "{} bytes more than announced", bytes - due_);
  zip_.Write(data, bytes);
  due_ -= bytes;
  BeginNext();
}

void TorchWriter::Commit() {
  CHECK_MSG(!open_, "{} announced bytes did not come", due_);
  zip_.Add("archive/version", "3\n");
  zip_.Commit();
}

}  // namespace bamba
