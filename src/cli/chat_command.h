#pragma once

#include <string>
#include <string_view>

namespace bamba::cli {

enum class ChatVerb { kSay, kReset, kSave, kLoad, kRegen, kUndo, kHelp, kQuit };

// What was typed into a chat.
struct ChatCommand {
  ChatVerb verb = ChatVerb::kSay;
  std::string argument;  // of kSay the text, of kSave and kLoad the file, in which "~/" is the home directory
};

// A single line that begins with "/" is a command; "//" begins a text with "/". Throws Error: a command that there isn't (with the nearest that there is), a
// file missing, an argument too many.
ChatCommand ParseChatCommand(std::string_view typed);

const char* ChatHelp();  // the commands and keys, a line each

}  // namespace bamba::cli
