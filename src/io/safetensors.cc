#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/units.h"
#include "io/json.h"

namespace bamba {
namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian and used in place");

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr size_t kDataAlign = 64;             // of the data's first byte in files that we write

struct Placed {
  StoredTensor tensor;
  uint64_t begin = 0, end = 0;  // within the data
};

std::string Bytes(uint64_t n) { return Thousands(static_cast<int64_t>(std::min<uint64_t>(n, INT64_MAX))); }

Placed ParseEntry(std::string_view name, const json::value& value, const std::string& where) {
  CheckTensorName(name, where);
  const std::string label = fmt::format("{}: tensor '{}'", where, name);
  if (!value.is_object()) throw Error("{}: its entry in the header is no object", label);
  JsonKeys keys(value.get_object(), label);
  const auto dtype = keys.Text("dtype");
  const json::array *shape = keys.Array("shape"), *offsets = keys.Array("data_offsets");
  if (!dtype || !shape || !offsets) throw Error("{}: its entry in the header lacks dtype, shape or data_offsets", label);

  Placed p;
  p.tensor.name = name, p.tensor.dtype = *dtype, p.tensor.file = where;
  for (const json::value& s : *shape) {
    if (!s.is_int64() || s.get_int64() < 0) keys.Fail("shape", "a list of whole numbers from 0");
    p.tensor.shape.push_back(s.get_int64());
  }
  if (offsets->size() != 2 || !(*offsets)[0].is_int64() || !(*offsets)[1].is_int64() || (*offsets)[0].get_int64() < 0 ||
      (*offsets)[1].get_int64() < (*offsets)[0].get_int64())
    keys.Fail("data_offsets", "[begin, end] with 0 ≤ begin ≤ end");
  p.begin = static_cast<uint64_t>((*offsets)[0].get_int64()), p.end = static_cast<uint64_t>((*offsets)[1].get_int64());
  p.tensor.bytes = p.end - p.begin;

  const size_t element = StoredElementBytes(*dtype);
  const auto expected = StoredBytes(p.tensor.shape, std::max<size_t>(element, 1));
  if (!expected) throw Error("{} has the impossible shape {}", label, ShapeString(p.tensor.shape));
  if (element != 0 && *expected != p.tensor.bytes)
    throw Error("{} has dtype {} and shape {}, its data {} bytes; expected {}. The header contradicts itself: download or convert the file again", label,
                *dtype, ShapeString(p.tensor.shape), Bytes(p.tensor.bytes), Bytes(*expected));
  return p;
}

void CheckLayout(const std::vector<Placed>& placed, uint64_t data_begin, uint64_t data_size, const std::string& where) {
  uint64_t end = 0;
  for (const Placed& p : placed) {
    const std::string& name = p.tensor.name;
    if (p.end > data_size)
      throw Error(
          "{}: tensor '{}' ends at byte {} of the data, of which the file holds {}. It is cut short: compare its size with the original's, or download it "
          "again",
          where, name, Bytes(p.end), Bytes(data_size));
    if (p.begin != end)
      throw Error("{}: tensor '{}' begins at byte {} of the data; expected {}, where the one before it ends ({})", where, name, Bytes(p.begin), Bytes(end),
                  p.begin < end ? "they overlap" : "a hole");
    if (const size_t element = StoredElementBytes(p.tensor.dtype); element > 1 && (data_begin + p.begin) % element != 0)
      throw Error(
          "{}: tensor '{}' lies at byte {}, which is no multiple of the {} bytes of {}; save the file again with a current safetensors, which aligns it", where,
          name, Bytes(data_begin + p.begin), element, p.tensor.dtype);
    end = p.end;
  }
  if (end != data_size) throw Error("{}: holds {} bytes of data; its header describes {}", where, Bytes(data_size), Bytes(end));
}

}  // namespace

SafetensorsContent ParseSafetensors(std::span<const char> bytes, const std::string& where) {
  uint64_t header_size = 0;
  if (bytes.size() < sizeof header_size) throw Error("{}: is {} bytes long; expected a safetensors file, whose header alone has more", where, bytes.size());
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  const uint64_t rest = bytes.size() - sizeof header_size;
  if (header_size > kMaxHeader)
    throw Error("{}: begins with a header size of {}; expected at most {}. It is no safetensors file", where, header_size, Bytes(kMaxHeader));
  if (header_size > rest)
    throw Error("{}: its header has {} bytes, of which the file holds {}. It is cut short, or no safetensors file", where, Bytes(header_size), Bytes(rest));

  const json::value header = ParseJson({bytes.data() + sizeof header_size, static_cast<size_t>(header_size)}, where);
  if (!header.is_object()) throw Error("{}: its header is no JSON object; it is no safetensors file", where);
  SafetensorsContent content;
  std::vector<Placed> placed;
  for (const auto& member : header.get_object()) {
    if (member.key() != "__metadata__") {
      placed.push_back(ParseEntry(member.key(), member.value(), where));
      continue;
    }
    if (!member.value().is_object()) throw Error("{}: __metadata__ is no object", where);
    JsonKeys keys(member.value().get_object(), where, "__metadata__.");
    for (const auto& pair : keys.object()) content.metadata[pair.key()] = keys.Text(pair.key()).value_or("");
  }
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  CheckLayout(placed, sizeof header_size + header_size, rest - header_size, where);
  const char* data = bytes.data() + sizeof header_size + header_size;
  for (Placed& p : placed) {
    p.tensor.tensor = ViewOf(data + p.begin, p.tensor.dtype, p.tensor.shape);
    content.tensors.push_back(std::move(p.tensor));
  }
  return content;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path), content_(ParseSafetensors(file_.bytes(), path)) {
  for (const StoredTensor& t : content_.tensors) by_name_[t.name] = &t;
}

const StoredTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

Tensor SafetensorsFile::Get(std::string_view name, Dtype dtype) const {
  const StoredTensor* t = Find(name);
  if (!t) throw Error("{}: has no tensor '{}'", path(), name);
  if (!t->tensor || t->tensor.dtype() != dtype)
    throw Error("{}: tensor '{}' is {} {}; expected {}", path(), name, t->dtype, ShapeString(t->shape), StoredName(dtype));
  return t->tensor;
}

size_t SafetensorsWriter::Entry::bytes() const {
  const auto n = StoredBytes(shape, SizeOf(dtype));
  CHECK_MSG(n.has_value(), "{} has shape {}", name, ShapeString(shape));
  return *n;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<Entry> entries, const std::map<std::string, std::string>& metadata)
    : entries_(std::move(entries)), file_(path) {
  std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return SizeOf(a.dtype) > SizeOf(b.dtype); });
  json::object header;
  if (!metadata.empty()) {
    json::object& target = header["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata) target[key] = value;
  }
  for (const Entry& e : entries_) {
    CHECK_MSG(*StoredName(e.dtype) && !header.contains(e.name), "{} of {}", e.name, bamba::Name(e.dtype));
    const uint64_t begin = due_;
    due_ += e.bytes();
    header[e.name] = {{"dtype", StoredName(e.dtype)}, {"shape", json::array(e.shape.begin(), e.shape.end())}, {"data_offsets", {begin, due_}}};
  }
  std::string text = json::serialize(header);
  text.append((kDataAlign - (sizeof(uint64_t) + text.size()) % kDataAlign) % kDataAlign, ' ');
  const uint64_t size = text.size();
  file_.Write(&size, sizeof size);
  file_.Write(text);
}

void SafetensorsWriter::Write(const void* data, size_t bytes) {
  CHECK_MSG(bytes <= due_, "{} bytes more than announced", bytes - due_);
  file_.Write(data, bytes);
  due_ -= bytes;
}

void SafetensorsWriter::Commit() {
  CHECK_MSG(due_ == 0, "{} announced bytes did not come", due_);
  file_.Commit();
}

}  // namespace bamba
