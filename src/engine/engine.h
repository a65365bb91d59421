#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/batch_runner.h"
#include "engine/plan.h"
#include "engine/request.h"
#include "engine/runtime.h"
#include "engine/scheduler.h"
#include "engine/session_file.h"
#include "engine/snapshot_store.h"
#include "engine/state_pool.h"
#include "model/bamba.h"
#include "text/tokenizer.h"

namespace bamba {

struct EngineOptions {
  std::string name;  // of the model in errors: its directory
  Execution execution;
  int64_t context = 0;                                    // tokens whose keys and values each sequence has room for; without attention there is no such limit
  int32_t sequences = 1;                                  // that have their state in memory at a time; the others wait
  int64_t kv_tokens = 0;                                  // tokens whose keys and values all sequences together have room for; 0: each has its full context
  bool roll_back = false;                                 // sequences can go back, see Session::RollBack; takes up to twice the state
  int64_t snapshot_bytes = 0;                             // the most that Session::Snapshot keeps
  std::optional<bool> ahead;                              // queue a step before the tokens of the one before it are known; absent: on an accelerator
  std::function<void(const std::string&)> warn;           // one line for the user; may be empty
  std::function<void(int64_t done, int64_t of)> loading;  // is told the bytes of weights that an accelerator has; may be empty
};

using RequestId = int64_t;

// The ids of a prompt: its text's, with what the tokenizer's template puts around it. An empty one is the token that begins a text (the tokenizer's, else the
// config's; Error where neither knows one).
std::vector<int32_t> EncodePrompt(const Model& model, const Tokenizer& tokenizer, std::string_view text);

class Session;

// A model that writes texts: whoever generates does it through this. Many requests at a time, in batches that change from step to step; the same request gives
// the same tokens whatever came before it, whatever else is in its batches and with any number of threads. One thread calls it.
class Engine {
 public:
  // `model` and `tokenizer` must outlive this. Without a tokenizer (null) the text is the tokens' ids in decimal, a blank before each.
  // Throws Error where the machine's memory is too small, with the plan's numbers.
  Engine(const Model& model, const Tokenizer* tokenizer, EngineOptions options);
  ~Engine();

  // Throws Error for a request that can't be begun: a prompt without tokens, with ids outside the vocabulary or with more tokens than the context, more
  // completions than `sequences`, and sampling numbers that make no sense.
  void Check(const Request& request) const;
  // The same but for the prompt and the number of completions.
  void CheckChoices(const Request& request) const;

  // Queues a request, or throws as Check does. Requests begin in the order of their coming.
  RequestId Submit(Request request, Listener listener);
  // Runs one batch: admits requests that there is room for, reads a part of each prompt and adds a token to each text. False where no request is left.
  bool Step();
  // Ends what the request still writes: finish reason kInterrupted. Nothing for a request that is over.
  void Cancel(RequestId id);

  // One request of one completion, from beginning to end, beside those that were submitted. Throws Error as Check does, and where a logit isn't finite (a
  // submitted request then ends with kError, and the others go on).
  Generation Generate(const Request& request, const std::function<void(std::string_view piece)>& emit);

  const MemoryPlan& plan() const { return plan_; }
  // Bytes of weights that a step of one token reads: all but the other rows of the embedding.
  int64_t StepWeightBytes() const;

 private:
  friend class Session;
  struct Job;   // a request
  struct Text;  // a completion of a job that runs

  void CheckPrompt(std::span<const int32_t> prompt, int64_t position) const;
  RequestId Queue(Request request, Listener listener, Session* session);
  void Generate(const Request& request, const std::function<void(std::string_view)>& emit, Session* session, Generation& result);
  int64_t PagesOf(int64_t tokens) const;
  std::optional<SequenceState> ReserveSession();
  void ReleaseSession(SequenceState& sequence);
  const SessionIdentity& Identity();

  void EndInterrupted();
  void Admit();
  void Begin(const std::shared_ptr<Job>& job, int index, SequenceState sequence, Demand holds, std::span<const int32_t> unread);
  void RunStep();
  void RunBatch();
  bool Chooses() const;
  bool GoesAhead() const;
  void QueueBatch();
  void TakeTokens();
  void AddRows();
  static int64_t ScoredRows(const Text& text, int64_t unread, int64_t rows);
  bool CheckFinite(Text& text, std::span<const float> logits, int64_t position) const;
  bool CheckFinite(Text& text, int32_t token, int64_t position) const;
  void ForkCompletions(Text& first);
  // What a text goes on from after `position` tokens: the token that was chosen, or else the logits.
  struct Next {
    int64_t position;
    std::optional<int32_t> token;
    std::span<const float> logits;
    TokenLogprobs logprobs;  // of the token, where the request asks
  };
  void Continue(Text& text, Next next);
  void RemoveEnded();
  void Tell(const Job& job, int index, Generation generation);
  void WarnOfLength(int64_t position);
  template <typename Body>
  bool Guarded(const Body& body);

  const Model& model_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  BatchSize batch_size_;
  PoolSize pool_size_;
  MemoryPlan plan_;
  Model placed_;  // where it is executed
  BatchRunner runner_;
  SnapshotStore snapshots_;
  SamplerSpace sampler_space_;
  std::optional<SessionIdentity> identity_;  // known from the first session file on
  std::vector<int32_t> ends_;                // ids of the tokens that end a text

  RequestId next_id_ = 1;
  Demand free_;  // slots, and pages that nobody has set aside
  std::deque<std::shared_ptr<Job>> waiting_;
  std::vector<std::unique_ptr<Text>> running_;
  // A row of a queued batch, whose token follows `position` tokens of a text.
  struct Row {
    Text* text;  // null: over since
    int64_t position;
    bool chosen;  // where the model runs; else here, from the logits
  };
  std::vector<Row> flights_[2];  // the scored rows of the batches whose tokens have not arrived
  int64_t queued_ = 0, arrived_ = 0;
  // Of the present step:
  std::vector<Choice> choices_;
  std::vector<LogitEdit> edits_;
  std::vector<Demand> demands_;         // of the waiting requests
  std::vector<int64_t> unread_, rows_;  // of the running texts
  std::exception_ptr thrown_;           // by a listener
  bool stepping_ = false, warned_ = false;
};

}  // namespace bamba
