#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace bamba::cli {

// Whether all of the text is a number as std::from_chars reads it.
template <typename T>
bool FromChars(std::string_view text, T& number) {
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  return fault == std::errc() && end == text.data() + text.size();
}

// Whether all of the text is a number; whole ones are decimal, with zeros in front, too, where CLI11 would read an octal one.
template <typename T>
bool ReadNumber(const std::string& text, T& number) {
  if constexpr (std::is_integral_v<T>) return FromChars(text, number);
  return !text.empty() && CLI::detail::lexical_cast(text, number);
}

// For transform(): an option's value is a number that `fits`, else one line says what was found and expected. An empty value, of a variable that isn't set, is
// no number.
template <typename T, typename Fits>
CLI::Validator NumberThat(const Fits& fits, const std::string& which) {
  const auto fault = [fits, which](std::string& text) {
    T number;
    if (!ReadNumber(text, number) || !fits(number)) return fmt::format("found '{}', expected a {}number{}", text, std::is_integral_v<T> ? "whole " : "", which);
    if constexpr (std::is_integral_v<T>) text = fmt::to_string(number);
    return std::string();
  };
  return CLI::Validator(fault, "");
}
template <typename T>
CLI::Validator AnyNumber() {
  return NumberThat<T>([](T) { return true; }, "");
}
template <typename T>
CLI::Validator Between(T low, T high) {  // NaN isn't
  return NumberThat<T>([low, high](T number) { return number >= low && number <= high; }, fmt::format(" from {} to {}", low, high));
}

// For check(): a value is not empty, as that of a variable that isn't set.
inline CLI::Validator NotEmpty(const std::string& expected) {
  return CLI::Validator([expected](std::string& text) { return text.empty() ? "is empty; expected " + expected : std::string(); }, "");
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
