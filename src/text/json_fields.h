#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace bamba {

// A value of a JSON file together with where it stands ("tokenizer.json: pre_tokenizer.pretokenizers[1]"). Every reader checks what it finds and throws
// an Error that names the place.
class JsonField {
 public:
  JsonField(const boost::json::value* value, std::string where) : value_(value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  bool IsNull() const { return value_ == nullptr || value_->is_null(); }  // or absent
  bool IsString() const { return value_ != nullptr && value_->is_string(); }
  JsonField operator[](std::string_view key) const;  // of an object; an absent member is null
  bool Has(std::string_view key) const;

  std::string_view String() const;
  bool Bool() const;
  bool BoolOr(bool otherwise) const { return IsNull() ? otherwise : Bool(); }
  int64_t Integer() const;
  bool IsZero() const { return value_ != nullptr && value_->is_number() && value_->to_number<double>() == 0; }

  // The elements of an array.
  template <typename Visit>
  void ForEach(Visit visit) const {
    size_t i = 0;
    for (const boost::json::value& element : Array()) visit(JsonField(&element, where_ + "[" + std::to_string(i++) + "]"));
  }

 private:
  const boost::json::array& Array() const;
  [[noreturn]] void Fail(std::string_view expected) const;

  const boost::json::value* value_;
  std::string where_;
};

}  // namespace bamba
