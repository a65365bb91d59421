#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace bamba::cli {

// Whether all of the text is a number; whole ones are decimal, with zeros in front, too, where CLI11 would read an octal one.
template <typename T>
bool ReadNumber(const std::string& text, T& number) {
  if constexpr (std::is_integral_v<T>) {
    const char* const end = text.data() + text.size();
    const auto [rest, fault] = std::from_chars(text.data(), end, number);
    return fault == std::errc() && rest == end;
  } else {
    return !text.empty() && CLI::detail::lexical_cast(text, number);
  }
}

// For transform(): an option's value is a number from `low` to `high`, else one line says what was found and expected. NaN is no number.
template <typename T>
CLI::Validator Between(T low, T high) {
  const auto fault = [low, high](std::string& text) {
    T number;
    if (!ReadNumber(text, number) || !(number >= low && number <= high))
      return fmt::format("found '{}', expected a {}number from {} to {}", text, std::is_integral_v<T> ? "whole " : "", low, high);
    if constexpr (std::is_integral_v<T>) text = fmt::to_string(number);
    return std::string();
  };
  return CLI::Validator(fault, "");
}

// Likewise, a number at all; an empty value, of a variable that isn't set, is none.
template <typename T>
CLI::Validator AnyNumber() {
  const auto fault = [](std::string& text) {
    T number;
    if (!ReadNumber(text, number)) return fmt::format("found '{}', expected a {}number", text, std::is_integral_v<T> ? "whole " : "");
    if constexpr (std::is_integral_v<T>) text = fmt::to_string(number);
    return std::string();
  };
  return CLI::Validator(fault, "");
}

// For check(): a name is not empty, as that of a variable that isn't set.
inline CLI::Validator NotEmpty() {
  return CLI::Validator([](std::string& text) { return std::string(text.empty() ? "is empty" : ""); }, "");
}

// Adds an option for numbers from `low` to `high` with commas between them; given several times, the lists are one. CLI11's own lists pass over empty elements.
template <typename T>
void AddList(CLI::App& verb, const std::string& names, std::vector<T>& values, int64_t low, int64_t high, const std::string& help) {
  const auto read = [name = names.substr(names.rfind(',') + 1), &values, valid = Between(low, high)](const std::vector<std::string>& lists) {
    values.clear();
    for (const std::string& list : lists)
      for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
        end = list.find(',', begin);
        std::string text = list.substr(begin, end - begin);
        if (const std::string fault = valid(text); !fault.empty()) throw CLI::ValidationError(name, fault);
        T& number = values.emplace_back();
        ReadNumber(text, number);
      }
  };
  verb.add_option_function<std::vector<std::string>>(names, read, help)->expected(1)->take_all()->type_name("N[,N…]");
}

}  // namespace bamba::cli
