#include "text/chat_template.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>

#include "base/error.h"
#include "base/mapped_file.h"
#include "text/json_fields.h"

namespace bamba {
namespace {

constexpr std::string_view kText = "{}";  // where a text stands in a form

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kWhite = " \t\r\n\v\f";
  const size_t first = text.find_first_not_of(kWhite);
  return first == std::string_view::npos ? std::string_view() : text.substr(first, text.find_last_not_of(kWhite) + 1 - first);
}

}  // namespace

// "<|…|>" is a special token, the rest is text.
struct ChatTemplate::Form {
  std::string name;
  std::string system, user, reply;      // what stands around the texts; `reply` before the model's own
  std::string reply_end;                // after it, at the beginning of the next turn
  std::vector<std::string> end_tokens;  // by which the model ends a reply
  std::vector<std::string> stop;
  bool lines = false;    // plain text in which a turn begins on a new line
  bool trims = false;    // takes white space from around the texts
  bool special = false;  // names of special tokens in the texts are these tokens
};

const std::vector<ChatTemplate::Form>& ChatTemplate::Forms() {
  static const std::vector<Form> kForms = {
      {.name = "none", .system = "{}\n", .user = "{}", .lines = true, .special = true},
      {.name = "transcript", .system = "{}\n\n", .user = "User: {}\n", .reply = "Assistant:", .stop = {"\nUser:"}, .lines = true},
      {.name = "chatml",
       .system = "<|im_start|>system\n{}<|im_end|>\n",
       .user = "<|im_start|>user\n{}<|im_end|>\n",
       .reply = "<|im_start|>assistant\n",
       .reply_end = "<|im_end|>\n",
       .end_tokens = {"<|im_end|>"}},
      {.name = "llama3",
       .system = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
       .user = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
       .reply = "<|start_header_id|>assistant<|end_header_id|>\n\n",
       .reply_end = "<|eot_id|>",
       .end_tokens = {"<|eot_id|>"},
       .trims = true}};
  return kForms;
}

// Encodes texts between special tokens as one, as if the whole conversation had been: no token ends where a form meets a text.
class ChatTemplate::Writer {
 public:
  Writer(const Form& form, const Tokenizer& tokenizer) : form_(form), tokenizer_(tokenizer) {}

  void Token(int32_t id) {
    Flush();
    ids_.push_back(id);
  }

  void Write(std::string_view frame, std::string_view text = {}) {
    while (!frame.empty()) {
      if (frame.starts_with(kText)) {
        pending_ += form_.trims ? Trimmed(text) : text;
        frame.remove_prefix(kText.size());
      } else if (const size_t end = frame.find("|>"); frame.starts_with("<|") && end != std::string_view::npos) {
        Token(tokenizer_.TokenId(frame.substr(0, end + 2)).value());
        frame.remove_prefix(end + 2);
      } else {
        pending_ += frame[0];
        frame.remove_prefix(1);
      }
    }
  }

  std::vector<int32_t> Finish() {
    Flush();
    return std::move(ids_);
  }

 private:
  void Flush() {
    const auto ids = tokenizer_.Encode(pending_, {.add_special = false, .parse_special = form_.special});
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    pending_.clear();
  }

  const Form& form_;
  const Tokenizer& tokenizer_;
  std::string pending_;
  std::vector<int32_t> ids_;
};

const std::vector<std::string>& ChatTemplate::Names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Form& form : Forms()) names.push_back(form.name);
    return names;
  }();
  return kNames;
}

ChatTemplate::ChatTemplate(const std::string& name, const Tokenizer& tokenizer, const std::string& where) : tokenizer_(&tokenizer) {
  const auto& forms = Forms();
  const auto form = std::find_if(forms.begin(), forms.end(), [&](const Form& f) { return f.name == name; });
  if (form == forms.end()) throw Error("no chat template '{}'; there are {}", name, fmt::join(Names(), ", "));
  form_ = &*form;
  std::vector<std::string> missing;
  const std::string frame = form->user + form->reply + form->reply_end;
  for (size_t at = 0; (at = frame.find("<|", at)) != std::string::npos; at++) {
    std::string token = frame.substr(at, frame.find("|>", at) + 2 - at);
    if (!tokenizer.TokenId(token) && std::find(missing.begin(), missing.end(), token) == missing.end()) missing.push_back(std::move(token));
  }
  if (!missing.empty())
    throw Error("{}: the tokenizer has no {}, which the chat template '{}' needs; the model was not trained on it: try none or transcript", where,
                fmt::join(missing, ", no "), name);
}

std::vector<int32_t> ChatTemplate::First(std::string_view system, std::string_view user) const {
  Writer writer(*form_, *tokenizer_);
  const auto around = tokenizer_->Encode("");
  if (!around.empty() && tokenizer_->bos() == around.front()) writer.Token(around.front());
  if (!system.empty()) writer.Write(form_->system, system);
  writer.Write(form_->user, user);
  writer.Write(form_->reply);
  return writer.Finish();
}

std::vector<int32_t> ChatTemplate::Next(std::string_view user, bool line_ended) const {
  Writer writer(*form_, *tokenizer_);
  writer.Write(form_->reply_end);
  if (form_->lines && !line_ended) writer.Write("\n");
  writer.Write(form_->user, user);
  writer.Write(form_->reply);
  return writer.Finish();
}

std::vector<int32_t> ChatTemplate::stop_tokens() const {
  std::vector<int32_t> ids;
  for (const std::string& token : form_->end_tokens) ids.push_back(tokenizer_->TokenId(token).value());
  return ids;
}

std::vector<std::string> ChatTemplate::stop() const { return form_->stop; }

namespace {

std::string Similar(std::string_view jinja) {
  if (jinja.find("<|im_start|>") != std::string_view::npos) return "chatml";
  if (jinja.find("<|start_header_id|>") != std::string_view::npos) return "llama3";
  return "";
}

}  // namespace

std::optional<OwnChatTemplate> FindOwnChatTemplate(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (const fs::path file = fs::path(directory) / "chat_template.jinja"; fs::exists(file, ignored))
    return OwnChatTemplate{file.string(), Similar(ReadFile(file.string()))};
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const std::string path = (fs::path(directory) / name).string();
    if (!fs::exists(path, ignored)) continue;
    boost::system::error_code fault;
    const boost::json::value value = boost::json::parse(ReadFile(path), fault);
    if (fault) throw Error("{}: not valid JSON: {}", path, fault.message());
    const JsonField field = JsonField(&value, path)["chat_template"];
    if (field.IsNull()) continue;
    // A list of named templates where it isn't a text; what it says is seen well enough in its JSON.
    return OwnChatTemplate{field.where(), Similar(field.IsString() ? std::string(field.String()) : boost::json::serialize(value))};
  }
  return std::nullopt;
}

}  // namespace bamba
