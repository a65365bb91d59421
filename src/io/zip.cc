#include "io/zip.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/error.h"

namespace bamba {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kDescriptor = 0x08074b50, kDirectoryHeader = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kLocator64 = 0x07064b50;
constexpr size_t kLocalBytes = 30, kDirectoryBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr uint16_t kZip64Extra = 1, kPaddingExtra = 0x4246;  // "FB", the id that torch pads with
constexpr size_t kAlign = 64;
constexpr uint32_t kIn64 = 0xffffffff;  // a size or offset that stands in the zip64 extra field

// Little-endian numbers at checked places of a file.
class Bytes {
 public:
  Bytes(std::span<const char> bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  template <typename T>
  T At(uint64_t offset) const {
    T value;
    std::memcpy(&value, Slice(offset, sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const char> Slice(uint64_t offset, uint64_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) Fail("an offset in it points past its end");
    return bytes_.subspan(static_cast<size_t>(offset), static_cast<size_t>(size));
  }
  uint64_t size() const { return bytes_.size(); }
  [[noreturn]] void Fail(const char* what) const { throw Error("{}: is damaged or no zip archive: {}; download or save it again", where_, what); }

 private:
  std::span<const char> bytes_;
  const std::string& where_;
};

struct Directory {
  uint64_t entries, size, offset;
};

Directory FindDirectory(const Bytes& in) {
  if (in.size() < kEndBytes) in.Fail("it is too short");
  const uint64_t last = in.size() - kEndBytes, first = last - std::min<uint64_t>(last, 0xffff);  // a comment of up to 65,535 bytes may follow the record
  uint64_t at = last;
  while (in.At<uint32_t>(at) != kEnd)
    if (at-- == first) in.Fail("it has no central directory");
  Directory d{in.At<uint16_t>(at + 10), in.At<uint32_t>(at + 12), in.At<uint32_t>(at + 16)};
  if (at >= kLocator64Bytes && in.At<uint32_t>(at - kLocator64Bytes) == kLocator64) {
    const uint64_t at64 = in.At<uint64_t>(at - kLocator64Bytes + 8);
    if (in.Slice(at64, kEnd64Bytes).empty() || in.At<uint32_t>(at64) != kEnd64) in.Fail("its zip64 end record is missing");
    d = {in.At<uint64_t>(at64 + 32), in.At<uint64_t>(at64 + 40), in.At<uint64_t>(at64 + 48)};
  }
  return d;
}

// A central directory entry's numbers, those of its zip64 extra field included.
struct Sizes {
  uint64_t size, stored, header;
};

Sizes ReadSizes(const Bytes& in, uint64_t at, uint64_t extra, uint64_t extra_end) {
  Sizes s{in.At<uint32_t>(at + 24), in.At<uint32_t>(at + 20), in.At<uint32_t>(at + 42)};
  while (extra + 4 <= extra_end) {
    const uint16_t id = in.At<uint16_t>(extra), size = in.At<uint16_t>(extra + 2);
    extra += 4;
    if (size > extra_end - extra) in.Fail("an extra field is longer than its place");
    if (id == kZip64Extra) {
      uint64_t field = extra;
      for (uint64_t* value : {&s.size, &s.stored, &s.header}) {
        if (*value != kIn64) continue;
        if (field + 8 > extra + size) in.Fail("a zip64 field is missing");
        *value = in.At<uint64_t>(field);
        field += 8;
      }
    }
    extra += size;
  }
  return s;
}

// CRC-32 (ISO 3309, reflected 0xEDB88320), eight bytes at a step through eight tables.
constexpr auto kCrcTables = [] {
  std::array<std::array<uint32_t, 256>, 8> t{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    t[0][i] = c;
  }
  for (size_t k = 1; k < 8; k++)
    for (size_t i = 0; i < 256; i++) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 0xff];
  return t;
}();

uint32_t Crc32(uint32_t crc, const char* data, size_t bytes) {
  crc = ~crc;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= crc;
    crc = 0;
    for (size_t k = 0; k < 8; k++) crc ^= kCrcTables[7 - k][word >> 8 * k & 0xff];
  }
  for (; bytes > 0; data++, bytes--) crc = crc >> 8 ^ kCrcTables[0][(crc ^ static_cast<uint8_t>(*data)) & 0xff];
  return ~crc;
}

template <typename T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename... T>
std::string Packed(T... values) {
  std::string out;
  (Append(out, values), ...);
  return out;
}

constexpr uint16_t kVersion = 45, kFlags = 0x0808, kStored = 0, kTime = 0, kDate = 0x0021;  // zip64; UTF-8 names, sizes after the data; 1980-01-01

}  // namespace

std::vector<ZipEntry> ParseZip(std::span<const char> bytes, const std::string& where) {
  const Bytes in(bytes, where);
  const Directory directory = FindDirectory(in);
  in.Slice(directory.offset, directory.size);
  if (directory.entries > directory.size / kDirectoryBytes) in.Fail("its directory is shorter than its number of entries");
  std::vector<ZipEntry> entries;
  uint64_t at = directory.offset;
  const uint64_t end = directory.offset + directory.size;
  for (uint64_t i = 0; i < directory.entries; i++) {
    if (end - at < kDirectoryBytes || in.At<uint32_t>(at) != kDirectoryHeader) in.Fail("its directory is broken");
    const uint64_t name_size = in.At<uint16_t>(at + 28), extra_size = in.At<uint16_t>(at + 30), comment_size = in.At<uint16_t>(at + 32);
    const uint64_t name = at + kDirectoryBytes, extra = name + name_size, next = extra + extra_size + comment_size;
    if (next > end) in.Fail("its directory is broken");
    ZipEntry& entry = entries.emplace_back();
    const auto name_bytes = in.Slice(name, name_size);
    entry.name.assign(name_bytes.begin(), name_bytes.end());
    if (in.At<uint16_t>(at + 8) & 1) throw Error("{}: entry '{}' is encrypted", where, entry.name);
    const Sizes sizes = ReadSizes(in, at, extra, extra + extra_size);
    if (in.At<uint16_t>(at + 10) != kStored || sizes.size != sizes.stored)
      throw Error("{}: entry '{}' is compressed; torch.save stores entries as they are, so write the file again with it", where, entry.name);
    in.Slice(sizes.header, kLocalBytes);
    if (in.At<uint32_t>(sizes.header) != kLocalHeader) in.Fail("an entry is not where the directory says");
    const uint64_t data = sizes.header + kLocalBytes + in.At<uint16_t>(sizes.header + 26) + in.At<uint16_t>(sizes.header + 28);
    entry.data = in.Slice(data, sizes.size);
    at = next;
  }
  return entries;
}

void ZipWriter::Put(const std::string& bytes) {
  file_.Write(bytes);
  position_ += bytes.size();
}

void ZipWriter::Begin(const std::string& name) {
  written_.push_back({name, position_, 0, 0});
  const uint64_t fixed = kLocalBytes + name.size() + 20 + 4;  // with the zip64 field and the padding field's head
  const uint16_t padding = static_cast<uint16_t>((kAlign - (position_ + fixed) % kAlign) % kAlign);
  Put(Packed(kLocalHeader, kVersion, kFlags, kStored, kTime, kDate, uint32_t{0}, kIn64, kIn64, static_cast<uint16_t>(name.size()),
             static_cast<uint16_t>(20 + 4 + padding)) +
      name + Packed(kZip64Extra, uint16_t{16}, uint64_t{0}, uint64_t{0}, kPaddingExtra, padding) + std::string(padding, '\0'));
}

void ZipWriter::Write(const void* data, size_t bytes) {
  Written& entry = written_.back();
  entry.crc = Crc32(entry.crc, static_cast<const char*>(data), bytes);
  entry.size += bytes;
  file_.Write(data, bytes);
  position_ += bytes;
}

void ZipWriter::End() {
  const Written& entry = written_.back();
  Put(Packed(kDescriptor, entry.crc, entry.size, entry.size));
}

void ZipWriter::Add(const std::string& name, std::string_view data) {
  Begin(name);
  Write(data.data(), data.size());
  End();
}

void ZipWriter::Commit() {
  const uint64_t directory = position_;
  for (const Written& e : written_) {
    CHECK(e.name.size() <= 0xffff);
    Put(Packed(kDirectoryHeader, kVersion, kVersion, kFlags, kStored, kTime, kDate, e.crc, kIn64, kIn64, static_cast<uint16_t>(e.name.size()), uint16_t{28},
               uint16_t{0}, uint16_t{0}, uint16_t{0}, uint32_t{0}, kIn64) +
        e.name + Packed(kZip64Extra, uint16_t{24}, e.size, e.size, e.header));
  }
  const uint64_t end = position_, entries = written_.size();
  const uint16_t few = static_cast<uint16_t>(std::min<uint64_t>(entries, 0xffff));
  Put(Packed(kEnd64, uint64_t{kEnd64Bytes - 12}, kVersion, kVersion, uint32_t{0}, uint32_t{0}, entries, entries, end - directory, directory));
  Put(Packed(kLocator64, uint32_t{0}, end, uint32_t{1}));
  Put(Packed(kEnd, uint16_t{0}, uint16_t{0}, few, few, static_cast<uint32_t>(std::min<uint64_t>(end - directory, kIn64)), kIn64, uint16_t{0}));
  file_.Commit();
}

}  // namespace bamba
