#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace bamba::cli {

// Checks that an option's value is a number from `low` to `high`, and says in one line what was found and expected. NaN is no number.
template <typename T>
CLI::Validator Between(T low, T high) {
  const auto fault = [low, high](std::string& text) {
    T number;
    if (CLI::detail::lexical_cast(text, number) && number >= low && number <= high) return std::string();
    return fmt::format("found '{}', expected a {}number from {} to {}", text, std::is_integral_v<T> ? "whole " : "", low, high);
  };
  return CLI::Validator(fault, "");
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
        CLI::detail::lexical_cast(text, number);
      }
  };
  verb.add_option_function<std::vector<std::string>>(names, read, help)->expected(1)->take_all()->type_name("N[,N…]");
}

}  // namespace bamba::cli
