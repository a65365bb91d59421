#include "io/json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "base/error.h"

namespace bamba {
namespace {

struct StrictText {
  std::string text;
  size_t colons = 0;  // outside of strings: in valid JSON, the number of keys
};

StrictText MakeStrict(std::string_view text) {
  StrictText out;
  out.text.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size(); i++) {
    if (in_string) {
      if (text[i] == '\\' && i + 1 < text.size())
        out.text += text[i++];
      else
        in_string = text[i] != '"';
      out.text += text[i];
      continue;
    }
    std::string_view word;
    for (std::string_view w : {"NaN", "Infinity", "-Infinity"})
      if (text.substr(i).starts_with(w)) word = w;
    if (!word.empty()) {
      out.text.append("{\"__float__\":\"").append(word).append("\"}");
      out.colons++;
      i += word.size() - 1;
      continue;
    }
    in_string = text[i] == '"';
    out.colons += text[i] == ':';
    out.text += text[i];
  }
  return out;
}

size_t CountKeys(const json::value& value) {
  size_t n = 0;
  if (const auto* object = value.if_object()) {
    n = object->size();
    for (const auto& member : *object) n += CountKeys(member.value());
  } else if (const auto* array = value.if_array()) {
    for (const json::value& item : *array) n += CountKeys(item);
  }
  return n;
}

// The word of {"__float__": word}, or empty.
std::string_view FloatWord(const json::value& value) {
  const auto* object = value.if_object();
  if (!object || object->size() != 1 || object->begin()->key() != "__float__") return {};
  const auto* word = object->begin()->value().if_string();
  if (!word || (*word != "NaN" && *word != "Infinity" && *word != "-Infinity")) return {};
  return {word->data(), word->size()};
}

// The shortest digits that read back as x. JSON has no infinity and no NaN: a number too large for a double, and null.
std::string NumberText(double x) {
  if (std::isnan(x)) return "null";
  if (std::isinf(x)) return x < 0 ? "-1e99999" : "1e99999";
  std::string text = fmt::format("{}", x);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

void Print(const json::value& value, const std::string& indent, std::string& out) {
  const std::string inner = indent + "  ";
  const char* separator = "";
  if (std::string_view word = FloatWord(value); !word.empty()) {
    out += word;
  } else if (value.is_double()) {
    out += NumberText(value.get_double());
  } else if (const auto* object = value.if_object(); object && !object->empty()) {
    out += '{';
    for (const auto& member : *object) {
      out.append(separator).append("\n").append(inner).append(json::serialize(member.key())).append(": ");
      Print(member.value(), inner, out);
      separator = ",";
    }
    out.append("\n").append(indent).append("}");
  } else if (const auto* array = value.if_array(); array && !array->empty()) {
    out += '[';
    for (const json::value& item : *array) {
      out.append(separator).append("\n").append(inner);
      Print(item, inner, out);
      separator = ",";
    }
    out.append("\n").append(indent).append("]");
  } else {
    out += json::serialize(value);
  }
}

void PrintLine(const json::value& value, std::string& out) {
  const char* separator = "";
  if (value.is_double()) {
    out += NumberText(value.get_double());
  } else if (const auto* object = value.if_object()) {
    out += '{';
    for (const auto& member : *object) {
      out.append(separator).append(json::serialize(member.key())).append(":");
      PrintLine(member.value(), out);
      separator = ",";
    }
    out += '}';
  } else if (const auto* array = value.if_array()) {
    out += '[';
    for (const json::value& item : *array) {
      out += separator;
      PrintLine(item, out);
      separator = ",";
    }
    out += ']';
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

json::value ParseJson(std::string_view text, const std::string& where) {
  const StrictText strict = MakeStrict(text);
  json::parse_options options;
  options.max_depth = 32;
  json::error_code error;
  json::value value = json::parse(strict.text, error, {}, options);
  if (error) throw Error("{}: is not valid JSON ({})", where, error.message());
  if (CountKeys(value) != strict.colons) throw Error("{}: an object in it has the same key twice", where);
  return value;
}

std::string PrettyJson(const json::value& value) {
  std::string out;
  Print(value, "", out);
  return out + "\n";
}

std::string JsonLine(const json::value& value) {
  std::string out;
  PrintLine(value, out);
  return out;
}

std::optional<int64_t> AsInt(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double() && value.get_double() == std::floor(value.get_double()) && std::abs(value.get_double()) <= 0x1p53)
    return static_cast<int64_t>(value.get_double());
  return {};
}

std::optional<double> AsNumber(const json::value& value) {
  if (value.is_double()) return value.get_double();
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  std::string_view word = FloatWord(value);
  if (word.empty()) return {};
  if (word == "NaN") return std::numeric_limits<double>::quiet_NaN();
  return word == "Infinity" ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
}

const json::value* JsonKeys::Find(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value && !value->is_null() ? value : nullptr;
}

void JsonKeys::Fail(std::string_view key, std::string_view expected) const {
  const json::value* value = object_.if_contains(key);
  std::string found = value ? JsonLine(*value) : "absent";
  if (found.size() > 60) {
    size_t end = 57;
    while (end > 0 && (found[end] & 0xc0) == 0x80) end--;  // not inside a character
    found = found.substr(0, end) + "…";
  }
  throw Error("{}: {}{} is {}; expected {}", where_, prefix_, key, found, expected);
}

std::optional<int64_t> JsonKeys::Int(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return {};
  if (auto i = AsInt(*value)) return i;
  Fail(key, "a whole number");
}

std::optional<double> JsonKeys::Number(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return {};
  if (auto x = AsNumber(*value)) return x;
  Fail(key, "a number");
}

std::optional<bool> JsonKeys::Bool(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return {};
  if (value->is_bool()) return value->get_bool();
  Fail(key, "true or false");
}

std::optional<std::string> JsonKeys::Text(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return {};
  if (value->is_string()) return std::string(value->get_string());
  Fail(key, "a string");
}

const json::array* JsonKeys::Array(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return nullptr;
  if (!value->is_array()) Fail(key, "a list");
  return &value->get_array();
}

std::optional<JsonKeys> JsonKeys::Object(std::string_view key) const {
  const json::value* value = Find(key);
  if (!value) return {};
  if (!value->is_object()) Fail(key, "an object");
  return JsonKeys(value->get_object(), where_, prefix_ + std::string(key) + ".");
}

int64_t JsonKeys::RequiredInt(std::string_view key) const {
  if (auto i = Int(key)) return *i;
  Fail(key, "a whole number");
}

}  // namespace bamba
