#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>
#include <type_traits>

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

}  // namespace bamba::cli
