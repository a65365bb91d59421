#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace bamba {

// How the turns of a conversation are written down for a model. The system's text stands once, before the first turn.
//
//   none        the texts alone, each turn on a new line: what is typed is continued, for models that continue texts
//   transcript  "User: …" and "Assistant: …" in lines of plain text, for models that were not trained on conversations; a reply ends before "\nUser:"
//   chatml      <|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n                                     (as Qwen's and many others' chat_template)
//   llama3      <|start_header_id|>user<|end_header_id|>\n\n…<|eot_id|>, texts without white space around   (as Llama 3's chat_template)
//
// A turn is encoded alone, so that it can be appended to what the model has read. Except for none, what is typed stays text, special tokens' names included.
class ChatTemplate {
 public:
  static const std::vector<std::string>& Names();

  // `tokenizer` must outlive this; `where` is its directory. Throws Error where it lacks special tokens of the template, with their names.
  ChatTemplate(const std::string& name, const Tokenizer& tokenizer, const std::string& where);

  // The tokens that begin a conversation, up to where its first reply begins: the token that begins a text (where the tokenizer puts one), the system's text if
  // it isn't empty, the user's.
  std::vector<int32_t> First(std::string_view system, std::string_view user) const;
  // The tokens from a reply's end to where the next one begins. `line_ended`: the conversation so far ends with a line feed.
  std::vector<int32_t> Next(std::string_view user, bool line_ended) const;

  std::vector<int32_t> stop_tokens() const;  // that end a reply
  std::vector<std::string> stop() const;     // texts before which it ends

 private:
  struct Form;
  class Writer;
  static const std::vector<Form>& Forms();

  const Form* form_;
  const Tokenizer* tokenizer_;
};

// A model's own template, a program in the Jinja language.
struct OwnChatTemplate {
  std::string where;    // the file, and the key in it
  std::string similar;  // the name of the template above whose tokens it uses; may be empty
};
// Looks for chat_template.jinja, chat_template.json and "chat_template" in tokenizer_config.json. Throws Error for files that can't be read.
std::optional<OwnChatTemplate> FindOwnChatTemplate(const std::string& directory);

}  // namespace bamba
