#include "text/json_fields.h"

#include "base/error.h"

namespace bamba {
namespace {

std::string_view KindName(const boost::json::value* value) {
  if (value == nullptr) return "nothing";
  if (value->is_number()) return "a number";
  switch (value->kind()) {
    case boost::json::kind::null: return "null";
    case boost::json::kind::bool_: return "true or false";
    case boost::json::kind::string: return "a string";
    case boost::json::kind::array: return "an array";
    default: return "an object";
  }
}

}  // namespace

void JsonField::Fail(std::string_view expected) const { throw Error("{}: found {}, expected {}", where_, KindName(value_), expected); }

bool JsonField::Has(std::string_view key) const { return value_ != nullptr && value_->is_object() && value_->get_object().contains(key); }

JsonField JsonField::operator[](std::string_view key) const {
  if (value_ == nullptr || !value_->is_object()) Fail("an object");
  bool top = where_.find(": ") == std::string::npos;
  return {value_->get_object().if_contains(key), where_ + (top ? ": " : ".") + std::string(key)};
}

std::string_view JsonField::String() const {
  if (!IsString()) Fail("a string");
  return {value_->get_string().data(), value_->get_string().size()};
}

bool JsonField::Bool() const {
  if (value_ == nullptr || !value_->is_bool()) Fail("true or false");
  return value_->get_bool();
}

int64_t JsonField::Integer() const {
  if (value_ == nullptr || !value_->is_int64()) Fail("an integer");
  return value_->get_int64();
}

const boost::json::array& JsonField::Array() const {
  if (value_ == nullptr || !value_->is_array()) Fail("an array");
  return value_->get_array();
}

}  // namespace bamba
