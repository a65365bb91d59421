#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace bamba {

namespace json = boost::json;

// Parses a whole text. Beyond the standard it takes the bare words NaN, Infinity and -Infinity, which Python writes; they become {"__float__": "Infinity"},
// the spelling of transformers 5. Throws Error naming `where` for bad syntax or UTF-8, more than 32 levels, or a key that an object has twice.
json::value ParseJson(std::string_view text, const std::string& where);

// Indented by two; {"__float__": …} becomes the bare word, which transformers 4 and 5 both read.
std::string PrettyJson(const json::value& value);

// On one line, without a line feed at the end; numbers as people write them: 3.9, where Boost has 3.9E0.
std::string JsonLine(const json::value& value);

// The keys of one JSON object. Each getter returns nothing for a key that is absent or null, and throws Error naming file and key for a value of another kind.
class JsonKeys {
 public:
  // `prefix` goes before keys in messages: "ssm_cfg.".
  JsonKeys(const json::object& object, std::string where, std::string prefix = "") : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  const json::value* Find(std::string_view key) const;
  std::optional<int64_t> Int(std::string_view key) const;
  std::optional<double> Number(std::string_view key) const;  // {"__float__": …} included
  std::optional<bool> Bool(std::string_view key) const;
  std::optional<std::string> Text(std::string_view key) const;
  const json::array* Array(std::string_view key) const;
  std::optional<JsonKeys> Object(std::string_view key) const;
  int64_t RequiredInt(std::string_view key) const;

  const json::object& object() const { return object_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void Fail(std::string_view key, std::string_view expected) const;  // "file: key is VALUE; expected …"

 private:
  const json::object& object_;
  std::string where_, prefix_;
};

std::optional<int64_t> AsInt(const json::value& value);  // a whole number in int64's range, 2.0 included
std::optional<double> AsNumber(const json::value& value);

}  // namespace bamba
