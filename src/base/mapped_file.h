#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace bamba {

// A whole file, read-only, mapped into memory. Throws Error naming the file and the system's reason.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_), std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }

  const std::string& path() const { return path_; }
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const char> bytes() const { return {data_, size_}; }

 private:
  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// Says that all of these bytes of memory, a mapped file's, are about to be read: the system then maps their pages in one go, not at the first touch of each.
void ExpectReading(const void* data, size_t bytes);
// And that these have been, and won't be again: their pages need not stay with this process. Whole pages alone; those of a file can be read still.
void DoneReading(const void* data, size_t bytes);

// A file's whole text; path "-" reads standard input. Throws Error.
std::string ReadFile(const std::string& path);

// A name beside `path` for what is to take its place: path.tmp-N, of this process, N. Removes what killed processes left under such names, files and
// directories; what cannot be read or removed stays, as it is in nobody's way.
std::string TemporaryName(const std::string& path);

// Two files or directories take each other's names in one step. False, and nothing has happened, where one isn't there or the file system can't.
bool ExchangeNames(const std::string& a, const std::string& b);

// Makes sure that `path` can be written and that its owner alone can read it; an empty file where there was none. False where it is no regular file, such as
// /dev/null: that stays as it is. Throws Error.
bool MakePrivate(const std::string& path);

// Writes under a temporary name beside `path` and takes that name only in Commit(): readers see the old file or the whole new one, never a half.
// It keeps the old one's permissions, and where `path` is a symbolic link the file that it names is replaced. A device or a pipe that somebody reads is written
// as it is.
// Every call throws Error with the system's reason (disk full, no permission); without Commit the destructor removes the temporary file.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void Write(const void* data, size_t bytes);
  void Write(std::string_view text) { Write(text.data(), text.size()); }
  void Commit();

 private:
  [[noreturn]] void Fail(int reason) const;

  std::string path_, temporary_;
  int fd_ = -1;
};

}  // namespace bamba
