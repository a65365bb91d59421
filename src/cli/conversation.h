#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/session.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace bamba::cli {

// Turns of a chat on a session. Each turn reads its own tokens alone; taking one back restores the state that was there when it began.
class Conversation {
 public:
  struct Settings {
    std::string system;
    int64_t context = 0;  // of the engine
    Request reply;        // all but the prompt, what the template adds to it, and the seed of further attempts
  };
  struct Reply {
    Generation generation;
    int64_t read = 0;   // tokens, with those that the turn before left unread
    uint64_t seed = 0;  // of this attempt
    bool full = false;  // the context ended it
  };
  using Emit = std::function<void(std::string_view piece)>;

  // All must outlive this.
  Conversation(Session& session, const Tokenizer& tokenizer, const ChatTemplate& form, Settings settings);

  // Throws Error, and nothing has changed, where the turn doesn't fit into the context.
  Reply Say(std::string_view text, const Emit& emit);
  // Takes the last reply back and writes another one to the same text, with the next seed.
  Reply Regenerate(const Emit& emit);
  // Takes the last turn back, text and reply. Both throw Error where there is none, or where its state had to make room for later ones.
  void Undo();
  void Reset();

  void Save(const std::string& path) const { session_.Save(path); }
  // The turns of the file can't be taken back. Throws Error, and nothing has changed, where it can't be loaded.
  void Load(const std::string& path);

  int64_t tokens() const { return static_cast<int64_t>(session_.tokens().size()); }
  size_t turns() const { return turns_.size(); }  // that can be taken back

 private:
  struct Turn {
    std::optional<SnapshotId> before;  // none: the conversation began with it
    std::vector<int32_t> prompt;
    uint64_t attempts = 0;
  };

  Reply Continue(Turn& turn, const Emit& emit);
  void GoBack(const Turn& turn);
  void TakeOutStop(const Generation& generation);
  bool LineEnded() const;

  Session& session_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& form_;
  Settings settings_;
  std::vector<Turn> turns_;
};

}  // namespace bamba::cli
