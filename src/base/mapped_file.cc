#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace bamba {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0 && fd != STDIN_FILENO) close(fd);
  }
};

// For writing, but for a pipe that nobody reads, which would be waited for.
int OpenForWriting(const std::string& path, int flags) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | flags, 0600);
  if (fd < 0) throw Error("{}: cannot be written: {}", path, errno == ENXIO ? "nobody reads this pipe" : std::strerror(errno));
  return fd;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor d{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // a pipe that nobody writes to would be waited for
  if (d.fd < 0) throw Error("{}: cannot be opened: {}", path, std::strerror(errno));
  struct stat info;
  if (fstat(d.fd, &info) != 0) throw Error("{}: {}", path, std::strerror(errno));
  if (S_ISDIR(info.st_mode)) throw Error("{}: is a directory, expected a file", path);
  if (!S_ISREG(info.st_mode)) throw Error("{}: is not a regular file", path);
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, d.fd, 0);
  if (p == MAP_FAILED) throw Error("{}: cannot be mapped: {}", path, std::strerror(errno));
  data_ = static_cast<const char*>(p);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<char*>(data_), size_);
}

void ExpectReading(const void* data, size_t bytes) {
#ifndef MADV_POPULATE_READ
  constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14; older ones refuse it, and nothing is lost
#endif
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(data) / page * page;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(data) + bytes - begin, MADV_POPULATE_READ);
}

void DoneReading(const void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (from + page - 1) / page * page, end = (from + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string ReadFile(const std::string& path) {
  bool standard_input = path == "-";
  Descriptor d{standard_input ? 0 : open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (d.fd < 0) throw Error("{}: cannot be opened: {}", path, std::strerror(errno));
  std::string text;
  struct stat info;
  if (!standard_input && fstat(d.fd, &info) == 0 && S_ISREG(info.st_mode)) text.reserve(static_cast<size_t>(info.st_size) + 1);
  for (size_t chunk = 1 << 16;; chunk = chunk < (1 << 24) ? chunk * 2 : chunk) {
    size_t used = text.size();
    text.resize(used + chunk);
    ssize_t n = read(d.fd, text.data() + used, chunk);
    text.resize(used + static_cast<size_t>(n > 0 ? n : 0));
    if (n == 0) return text;
    if (n < 0 && errno != EINTR) throw Error("{}: cannot be read: {}", standard_input ? "standard input" : path, std::strerror(errno));
  }
}

std::string TemporaryName(const std::string& path) {
  namespace fs = std::filesystem;
  const std::string file = fs::path(path).filename().string(), folder = fs::path(path).parent_path().string(), prefix = file + ".tmp-";
  std::error_code fault;
  for (fs::directory_iterator at(folder.empty() ? "." : folder, fault), end; !fault && at != end; at.increment(fault)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    pid_t writer = 0;
    const char* last = name.data() + name.size();
    const auto [rest, bad] = std::from_chars(name.data() + prefix.size(), last, writer);
    if (bad != std::errc() || rest != last || writer <= 0) continue;
    const bool gone = writer == getpid() || (kill(writer, 0) != 0 && errno == ESRCH);  // our number was another's, then
    std::error_code ignored;
    if (gone) fs::remove_all(at->path(), ignored);
  }
  return fmt::format("{}.tmp-{}", path, getpid());
}

bool ExchangeNames(const std::string& a, const std::string& b) { return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0; }

bool MakePrivate(const std::string& path) {
  Descriptor d{OpenForWriting(path, O_APPEND | O_CREAT)};
  struct stat info;
  if (fstat(d.fd, &info) != 0 || !S_ISREG(info.st_mode)) return false;
  if (info.st_uid == geteuid()) fchmod(d.fd, 0600);
  return true;
}

FileWriter::FileWriter(const std::string& path) : path_(path) {
  struct stat info;
  const bool exists = stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) throw Error("{}: is a directory, expected a file name", path);
  if (exists && !S_ISREG(info.st_mode)) {
    fd_ = OpenForWriting(path, 0);
    fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) & ~O_NONBLOCK);
    return;
  }
  if (exists) {
    if (access(path.c_str(), W_OK) != 0) throw Error("{}: cannot be written: {}", path, std::strerror(errno));
    std::error_code fault;  // behind a symbolic link, the file that it names is replaced
    if (const std::filesystem::path real = std::filesystem::canonical(path, fault); !fault) path_ = real.string();
  }
  temporary_ = TemporaryName(path_);
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, exists ? info.st_mode & 0777 : 0666);
  if (fd_ < 0) throw Error("{}: cannot be created: {}", path, std::strerror(errno));
  if (exists) fchmod(fd_, info.st_mode & 07777);
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void FileWriter::Write(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    ssize_t n = write(fd_, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) Fail(errno);
    p += n, bytes -= static_cast<size_t>(n);
  }
}

void FileWriter::Commit() {
  // Pipes and terminals cannot be synchronised and say so with EINVAL.
  if (fsync(fd_) != 0 && errno != EINVAL) Fail(errno);
  if (close(std::exchange(fd_, -1)) != 0) Fail(errno);
  if (!temporary_.empty() && rename(temporary_.c_str(), path_.c_str()) != 0) Fail(errno);
  temporary_.clear();
}

void FileWriter::Fail(int reason) const {
  throw Error("{}: cannot be written: {}{}", path_, std::strerror(reason), temporary_.empty() ? "" : "; nothing was kept");
}

}  // namespace bamba
