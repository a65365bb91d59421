#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace bamba {

// One text that grows by turns, such as a chat: what was read once is never read again. It owns a sequence of the engine, with room for the whole context, as
// long as it lives. Whatever the turns, the bits are those of a text read in one piece.
class Session {
 public:
  // `engine` must outlive this. Throws Error where all of its sequences are taken.
  explicit Session(Engine& engine);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // All tokens so far, appended and chosen. The model reads the last ones, as far as it has not, at the start of the next Generate.
  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t position() const { return sequence_.position; }  // tokens read
  int64_t unread() const { return static_cast<int64_t>(tokens_.size()) - sequence_.position; }
  int64_t room() const;  // tokens until the context is full; INT64_MAX without attention

  // Appends request.prompt (which may be empty if there are unread tokens) and continues the text with one completion. A token that ends the text, and text
  // held back for a stop string, are not appended; the tokens of a stop string are. Where interrupted, what was chosen so far stays. Throws Error as
  // Engine::Generate does, then nothing has changed.
  Generation Generate(const Request& request, const std::function<void(std::string_view piece)>& emit);

  // Forgets the last n tokens without reading any again. False, and nothing changed, where the state does not reach back so far: kSsdChunk tokens before the
  // furthest that the model has read are always in reach, if the engine has `roll_back`.
  bool RollBack(int64_t n);

  // Forgets everything.
  void Clear();

  // Remembers tokens and state within the engine's budget for snapshots (EngineOptions::snapshot_bytes); those used longest ago are dropped for new ones. One
  // that is larger than the budget is not kept, and drops none.
  SnapshotId Snapshot();
  // Goes back, or forward, to a snapshot, which stays. False, and nothing changed, where it was dropped.
  bool Restore(SnapshotId id);

  // Writes tokens and state to a file (engine/session_file.h), which appears whole or not at all.
  void Save(const std::string& path) const;
  // Replaces tokens and state by a file's, with the same bits. Throws Error, nothing changed, where it isn't one of this model, build and arithmetic, or
  // has more tokens than the context.
  void Load(const std::string& path);

 private:
  friend class Engine;

  Engine& engine_;
  SequenceState sequence_;
  std::vector<int32_t> tokens_;
};

}  // namespace bamba
