#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace bamba {

// What a user can cause and mend: a bad file, flag, request or a plan that does not fit. Thrown at the edges only (io, text, cli, planning);
// the message is one line that names the file, what was found, what was expected and what to do. A broken invariant of ours is a CHECK instead.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}

  template <typename... Args>
  explicit Error(fmt::format_string<Args...> format, Args&&... args) : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

// Who read standard output has gone, as head does when it has its lines: nothing to complain about.
class ReaderGone : public Error {
 public:
  using Error::Error;
};

// The user called the program wrongly (exit code 2); every other Error exits with 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

}  // namespace bamba
