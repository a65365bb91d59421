#include "engine/session.h"

#include <limits>

#include "base/error.h"
#include "base/units.h"

namespace bamba {

Session::Session(Engine& engine) : engine_(engine) {
  auto sequence = engine_.ReserveSession();
  if (!sequence) throw Error("{}: all of its {} sequences are taken", engine_.options_.name, engine_.options_.sequences);
  sequence_ = std::move(*sequence);
}

Session::~Session() { engine_.ReleaseSession(sequence_); }

int64_t Session::room() const {
  if (engine_.pool_size_.pages == 0) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(0, engine_.options_.context - static_cast<int64_t>(tokens_.size()));
}

Generation Session::Generate(const Request& request, const std::function<void(std::string_view)>& emit) {
  Request whole = request;
  whole.prompt.assign(tokens_.begin() + sequence_.position, tokens_.end());
  whole.prompt.insert(whole.prompt.end(), request.prompt.begin(), request.prompt.end());
  engine_.CheckChoices(request);
  engine_.CheckPrompt(whole.prompt, sequence_.position);

  tokens_.insert(tokens_.end(), request.prompt.begin(), request.prompt.end());
  Generation result;
  try {
    engine_.Generate(whole, emit, this, result);
  } catch (...) {
    tokens_.insert(tokens_.end(), result.tokens.begin(), result.tokens.end());
    throw;
  }
  tokens_.insert(tokens_.end(), result.tokens.begin(), result.tokens.end());
  return result;
}

bool Session::RollBack(int64_t n) {
  const auto left = static_cast<int64_t>(tokens_.size()) - n;
  CHECK_MSG(n >= 0 && left >= 0, "{} of {} tokens", n, tokens_.size());
  const int64_t read = sequence_.position - left;
  if (left == 0) return Clear(), true;
  if (read > 0) {
    if (left < engine_.runner_.pool().Reach(sequence_)) return false;
    engine_.runner_.pool().RollBack(sequence_, read);
  }
  tokens_.resize(static_cast<size_t>(left));
  return true;
}

void Session::Clear() {
  sequence_.position = sequence_.furthest = 0;
  tokens_.clear();
}

SnapshotId Session::Snapshot() {
  const StatePool& pool = engine_.runner_.pool();
  const int64_t position = sequence_.position, reach = pool.Reach(sequence_);
  auto snapshot = engine_.snapshots_.MakeRoom(std::ssize(tokens_), pool.ImageBytes(position, reach));
  if (!snapshot) return 0;
  snapshot->tokens = tokens_, snapshot->position = position, snapshot->reach = reach;
  pool.Save(sequence_, reach, snapshot->image);
  return engine_.snapshots_.Add(std::move(*snapshot));
}

bool Session::Restore(SnapshotId id) {
  const bamba::Snapshot* snapshot = engine_.snapshots_.Find(id);
  if (!snapshot) return false;
  CHECK(engine_.runner_.pool().Restore(sequence_, snapshot->position, snapshot->reach, snapshot->image));
  tokens_ = snapshot->tokens;
  return true;
}

void Session::Save(const std::string& path) const { WriteSession(path, engine_.Identity(), tokens_, engine_.runner_.pool(), sequence_); }

void Session::Load(const std::string& path) {
  StatePool& pool = engine_.runner_.pool();
  const SessionFile file(path, engine_.Identity(), engine_.model_.config, pool, engine_.options_.context);
  CHECK(pool.Restore(sequence_, file.position(), file.reach(), file.image()));
  tokens_.assign(file.tokens().begin(), file.tokens().end());
}

}  // namespace bamba
