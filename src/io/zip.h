#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"

namespace bamba {

// A file inside a zip archive: a view of the archive's bytes.
struct ZipEntry {
  std::string name;
  std::span<const char> data;
};

// Lists an archive whose entries are stored, not compressed, zip64 or not (PKWARE APPNOTE 4.3): what torch.save writes. Checksums are not verified: that would
// read every byte of a checkpoint. Throws Error naming `where`.
std::vector<ZipEntry> ParseZip(std::span<const char> bytes, const std::string& where);

// Writes a zip64 archive of stored entries, each entry's data aligned to 64 bytes. Nothing is under `path` before Commit().
class ZipWriter {
 public:
  explicit ZipWriter(const std::string& path) : file_(path) {}

  void Begin(const std::string& name);
  void Write(const void* data, size_t bytes);
  void End();
  void Add(const std::string& name, std::string_view data);
  void Commit();

 private:
  struct Written {
    std::string name;
    uint64_t header, size;
    uint32_t crc;
  };
  void Put(const std::string& bytes);

  FileWriter file_;
  std::vector<Written> written_;
  uint64_t position_ = 0;
};

}  // namespace bamba
