#include "cli/conversation.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/units.h"
#include "text/stream_decoder.h"

namespace bamba::cli {

Conversation::Conversation(Session& session, const Tokenizer& tokenizer, const ChatTemplate& form, Settings settings)
    : session_(session), tokenizer_(tokenizer), form_(form), settings_(std::move(settings)) {
  for (int32_t token : form.stop_tokens()) settings_.reply.stop_tokens.push_back(token);
  for (const std::string& stop : form.stop()) settings_.reply.stop.push_back(stop);
}

Conversation::Reply Conversation::Say(std::string_view text, const Emit& emit) {
  const bool first = session_.tokens().empty();
  Turn turn{.prompt = first ? form_.First(settings_.system, text) : form_.Next(text, LineEnded())};
  const auto size = static_cast<int64_t>(turn.prompt.size());
  if (size > session_.room())
    throw Error(
        "the text has {} tokens, and the context of {} has room for {}: make it shorter, /undo or /reset; or /save FILE, begin again with a larger "
        "--context, and /load FILE",
        Thousands(size), Thousands(settings_.context), Thousands(session_.room()));
  if (!first) turn.before = session_.Snapshot();
  turns_.push_back(std::move(turn));
  const int64_t before = tokens();
  try {
    return Continue(turns_.back(), emit);
  } catch (...) {
    if (tokens() == before) turns_.pop_back();  // refused; after a fault in its middle it can be taken back
    throw;
  }
}

Conversation::Reply Conversation::Regenerate(const Emit& emit) {
  if (turns_.empty()) throw Error("there is no reply to write again");
  GoBack(turns_.back());
  turns_.back().attempts++;
  return Continue(turns_.back(), emit);
}

void Conversation::Undo() {
  if (turns_.empty()) throw Error("there is no turn to take back");
  GoBack(turns_.back());
  turns_.pop_back();
}

void Conversation::Reset() {
  session_.Clear();
  turns_.clear();
}

void Conversation::Load(const std::string& path) {
  session_.Load(path);
  turns_.clear();
}

void Conversation::GoBack(const Turn& turn) {
  if (!turn.before) return session_.Clear();
  if (!session_.Restore(*turn.before)) throw Error("the state before that turn was not kept: memory for such states is full; /reset begins anew");
}

Conversation::Reply Conversation::Continue(Turn& turn, const Emit& emit) {
  Request request = settings_.reply;
  request.prompt = turn.prompt;
  request.sampling.seed += turn.attempts;
  const int64_t position = session_.position(), given = session_.unread() + static_cast<int64_t>(turn.prompt.size());
  Reply reply{.seed = request.sampling.seed};
  reply.generation = session_.Generate(request, emit);
  const Generation& g = reply.generation;
  reply.read = std::min(given, session_.position() - position);  // less where it was interrupted
  if (g.finish == FinishReason::kStop) TakeOutStop(g);
  reply.full = g.finish == FinishReason::kLength && static_cast<int64_t>(g.tokens.size()) < request.max_tokens;
  return reply;
}

// The model goes on as if the stop string had never been there. Characters before it that share a token with it are read again, as tokens of their own. (It
// stays where it is longer than the state reaches back.)
void Conversation::TakeOutStop(const Generation& generation) {
  StreamDecoder decoder(tokenizer_, true);
  std::string text;
  size_t kept = 0, kept_text = 0, i = 0;
  for (; i < generation.tokens.size() && text.size() <= generation.text.size(); i++) {
    const bool whole = StreamDecoder(decoder).Finish().empty();  // no token is kept that ends within a character
    if (whole) kept = i, kept_text = text.size();
    text += decoder.Push(generation.tokens[i]);
  }
  if (text.size() <= generation.text.size()) return;  // a token ended it
  if (!session_.RollBack(static_cast<int64_t>(generation.tokens.size() - kept))) return;
  const std::string rest = generation.text.substr(kept_text);
  if (rest.empty()) return;
  session_.Generate({.prompt = tokenizer_.Encode(rest, {.add_special = false, .parse_special = false}), .max_tokens = 0}, [](std::string_view) {});
}

bool Conversation::LineEnded() const { return tokenizer_.TokenBytes(session_.tokens().back()).ends_with('\n'); }

}  // namespace bamba::cli
