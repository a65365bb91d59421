#pragma once

#include <fmt/format.h>

#include <string>

namespace bamba {

// Prints where and why, then aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace bamba

// An invariant of the program itself; user input never reaches one. CHECK_MSG adds values: CHECK_MSG(a == b, "{} rows, {} labels", a, b).
#define CHECK(condition) ((condition) ? static_cast<void>(0) : ::bamba::CheckFailed(__FILE__, __LINE__, #condition, {}))
#define CHECK_MSG(condition, ...) ((condition) ? static_cast<void>(0) : ::bamba::CheckFailed(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)))
#define CHECK_EQ(a, b) CHECK_MSG((a) == (b), "{} against {}", (a), (b))
