#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/memory.h"
#include "base/units.h"
#include "engine/completion.h"
#include "engine/device_model.h"
#include "engine/session.h"

namespace bamba {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMostTokens = int64_t{1} << 40;  // of a text: far more than anyone waits for, and far from overflow

constexpr int64_t kScoredRows = 16;  // of a prompt at a time, where it is to be scored: reading the head once for each row would take longer than the rest

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

bool HasAttention(const Config& config) { return config.Count(BlockKind::kAttention) > 0; }

// The tokenizer's own end; the config's list where the tokenizer knows none, or where the list has that one and more. (Bamba-9B's config names an id that is an
// ordinary word of its tokenizer.)
std::vector<int32_t> Ends(const Config& config, const Tokenizer* tokenizer) {
  const auto own = tokenizer ? tokenizer->eos() : std::nullopt;
  if (!own || std::find(config.eos.begin(), config.eos.end(), *own) != config.eos.end()) return config.eos;
  return {*own};
}

PoolSize PoolFor(const Config& config, const EngineOptions& options) {
  const int64_t each = PagesFor(options.context), all = options.kv_tokens > 0 ? PagesFor(options.kv_tokens) : options.sequences * each;
  return {.slots = options.sequences, .pages = HasAttention(config) ? all : 0, .roll_back = options.roll_back};
}

MemoryPlan FittingPlan(const Model& model, PoolSize pool, BatchSize batch, const EngineOptions& options) {
  const Execution& execution = options.execution;
  MemoryPlan plan = PlanMemory(model, pool, StepWorkspace(model, batch.rows, batch.scored, execution), execution);
  plan.snapshots = options.snapshot_bytes;
  CheckFits(plan, MemoryLeft(execution), options.name);
  if (plan.on_device && plan.snapshots > AvailableMemory())
    throw Error("{}: snapshots may take {} of this machine's memory, which has {} left", options.name, HumanBytes(static_cast<double>(plan.snapshots)),
                HumanBytes(static_cast<double>(AvailableMemory())));
  if (HasAttention(model.config) && pool.pages < PagesFor(options.context))
    throw Error("{}: one sequence of {} tokens needs {} pages of keys and values ({}), the plan has {} for all sequences; lower --context", options.name,
                Thousands(options.context), PagesFor(options.context), HumanBytes(static_cast<double>(PagesFor(options.context) * plan.page)), pool.pages);
  return plan;
}

Model Placed(const Model& model, const MemoryPlan& plan, const EngineOptions& options) {
  return ModelFor(options.execution, model, [&](int64_t done) {
    if (options.loading) options.loading(done, plan.weights);
  });
}

}  // namespace

std::vector<int32_t> EncodePrompt(const Model& model, const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.Encode(text);
  if (!ids.empty()) return ids;
  const auto bos = tokenizer.bos() ? tokenizer.bos() : model.config.bos;
  if (!bos) throw Error("the prompt is empty, and neither tokenizer nor config.json names a token that begins a text (bos_token_id); give a prompt");
  return {*bos};
}

// A request while it waits and runs.
struct Engine::Job {
  RequestId id;
  Request request;
  Listener listener;
  Session* session;  // whose sequence it continues; null: a sequence of its own
  int64_t room;      // tokens of each completion
  Demand demand;     // of all completions
  bool cancelled = false;
  Clock::time_point begun = {};

  bool Interrupted() { return cancelled = cancelled || (request.interrupted && request.interrupted()); }
};

// A completion that runs; while its request's prompt is being read, the first stands for all of them.
struct Engine::Text {
  std::shared_ptr<Job> job;
  int index;
  SequenceState sequence;
  Completion completion;
  Demand holds;
  std::span<const int32_t> unread;  // of the prompt, then `last`
  int32_t last = -1;
  int64_t row = -1;  // of the batch that was queued last, whose token isn't known yet
  std::optional<Clock::time_point> prompt_read;
  bool over = false;
  bool quiet = false;  // its listener has thrown: no more text
};

Engine::Engine(const Model& model, const Tokenizer* tokenizer, EngineOptions options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      batch_size_{.rows = std::max<int64_t>(PrefillRows(model.config, options_.execution), options_.sequences),
                  .scored = std::max<int64_t>(kScoredRows, options_.sequences)},
      pool_size_(PoolFor(model.config, options_)),
      plan_(FittingPlan(model, pool_size_, batch_size_, options_)),
      placed_(Placed(model, plan_, options_)),
      runner_(placed_, pool_size_, batch_size_, options_.execution),
      snapshots_(options_.snapshot_bytes, options_.execution.accelerator),
      ends_(Ends(model.config, tokenizer)),
      free_{.slots = pool_size_.slots, .pages = pool_size_.pages} {
  const auto sequences = static_cast<size_t>(options_.sequences);
  running_.reserve(sequences), unread_.reserve(sequences), rows_.reserve(sequences), choices_.reserve(sequences), edits_.reserve(kMostEdits);
  for (auto& flight : flights_) flight.reserve(sequences);
}

Engine::~Engine() = default;

int64_t Engine::StepWeightBytes() const { return plan_.weights - (model_.config.tied ? 0 : static_cast<int64_t>(model_.weights.embedding.weight.bytes())); }

void Engine::CheckPrompt(std::span<const int32_t> prompt, int64_t position) const {
  const auto tokens = position + static_cast<int64_t>(prompt.size());
  if (prompt.empty()) throw Error("{}: the prompt has no tokens; give at least one", options_.name);
  for (int32_t id : prompt)
    if (id < 0 || id >= model_.config.vocab)
      throw Error("{}: the prompt has token id {}, the model knows ids from 0 to {}{}", options_.name, id, model_.config.vocab - 1,
                  tokenizer_ ? "; is the tokenizer another model's?" : "");
  if (HasAttention(model_.config) && tokens > options_.context)
    throw Error("{}: the prompt {} {} tokens, the context has room for {}; raise --context", options_.name, position > 0 ? "would make the text" : "has",
                Thousands(tokens), Thousands(options_.context));
}

void Engine::CheckChoices(const Request& request) const {
  const int64_t vocab = model_.config.vocab;
  request.sampling.Validate();
  request.sampling.ValidateIds(vocab, request.min_tokens > 0 ? LastTokens(request, ends_) : std::vector<int32_t>());
  for (int32_t id : request.stop_tokens)
    if (id < 0 || id >= vocab) throw Error("{}: stop token {} is not in the vocabulary; the model's ids are 0 to {}", options_.name, id, vocab - 1);
  if (request.max_tokens < 0 || request.min_tokens < 0 || request.min_tokens > request.max_tokens)
    throw Error("{}: min_tokens is {} and max_tokens {}; expected 0 <= min_tokens <= max_tokens", options_.name, request.min_tokens, request.max_tokens);
  if (request.top_logprobs.value_or(0) < 0) throw Error("{}: top_logprobs is {}; expected at least 0", options_.name, *request.top_logprobs);
}

void Engine::Check(const Request& request) const {
  CheckChoices(request);
  CheckPrompt(request.prompt, 0);
  if (request.completions < 1 || request.completions > options_.sequences)
    throw Error("{}: {} completions are asked for, the engine has room for {} sequences at a time", options_.name, request.completions, options_.sequences);
}

// Pages that are set aside for a sequence which may come to so many tokens.
int64_t Engine::PagesOf(int64_t tokens) const { return pool_size_.pages > 0 ? PagesFor(std::min(tokens, options_.context)) : 0; }

RequestId Engine::Submit(Request request, Listener listener) {
  Check(request);
  return Queue(std::move(request), std::move(listener), nullptr);
}

RequestId Engine::Queue(Request request, Listener listener, Session* session) {
  const int64_t read = (session ? session->sequence_.position : 0) + static_cast<int64_t>(request.prompt.size());
  // The last token needs no room, since the model doesn't read it.
  const int64_t room = HasAttention(model_.config) ? std::min(request.max_tokens, options_.context - read + 1) : std::min(request.max_tokens, kMostTokens);
  // A session has set all of its own aside.
  const int64_t slots = session ? 0 : request.completions;
  const Demand demand{.slots = slots, .pages = slots * PagesOf(read + room)};
  if (demand.pages > pool_size_.pages)
    throw Error("{}: {} completions of up to {} tokens need {} pages of keys and values, there are {} ({} tokens); ask for fewer tokens or raise --context",
                options_.name, request.completions, Thousands(read + room), demand.pages, pool_size_.pages, Thousands(pool_size_.pages * kKvBlock));
  waiting_.push_back(std::make_shared<Job>(Job{.id = next_id_,
                                               .request = std::move(request),
                                               .listener = std::move(listener),
                                               .session = session,
                                               .room = std::max<int64_t>(0, room),
                                               .demand = demand}));
  return next_id_++;
}

std::optional<SequenceState> Engine::ReserveSession() {
  const Demand demand{.slots = 1, .pages = PagesOf(options_.context)};
  if (CountAdmitted({&demand, 1}, free_) == 0) return std::nullopt;
  free_.slots -= demand.slots, free_.pages -= demand.pages;
  return runner_.pool().Allocate();
}

void Engine::ReleaseSession(SequenceState& sequence) {
  runner_.pool().Free(sequence);
  free_.slots += 1, free_.pages += PagesOf(options_.context);
}

const SessionIdentity& Engine::Identity() {
  if (!identity_) identity_ = IdentityOf(model_, options_.execution, *runner_.context().threads);
  return *identity_;
}

bool Engine::Step() {
  CHECK_MSG(!stepping_, "a listener must not call Step");
  stepping_ = true;
  EndInterrupted();
  RemoveEnded();
  Admit();
  if (!running_.empty()) RunStep();
  RemoveEnded();
  stepping_ = false;
  if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  return !running_.empty() || !waiting_.empty();
}

void Engine::Cancel(RequestId id) {
  for (const auto& job : waiting_) job->cancelled |= job->id == id;
  for (const auto& text : running_) text->job->cancelled |= text->job->id == id;
  if (stepping_) return;  // then the next step ends it
  stepping_ = true;
  EndInterrupted();
  RemoveEnded();
  stepping_ = false;
  if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
}

void Engine::EndInterrupted() {
  for (const auto& text : running_) {
    if (!text->job->Interrupted()) continue;
    text->completion.End(FinishReason::kInterrupted);
    text->over = true;
  }
  std::erase_if(waiting_, [&](const std::shared_ptr<Job>& job) {
    if (!job->Interrupted()) return false;
    for (int index = 0; index < job->request.completions; index++) Tell(*job, index, {.finish = FinishReason::kInterrupted});
    return true;
  });
}

void Engine::Admit() {
  demands_.clear();
  for (const auto& job : waiting_) demands_.push_back(job->demand);
  size_t admitted = CountAdmitted(demands_, free_);
  if (admitted == 0 && running_.empty() && !waiting_.empty()) {
    const std::shared_ptr<Job> job = waiting_.front();
    waiting_.pop_front();
    const std::string error = fmt::format("{}: there is no room for the request while sessions hold {} of {} sequences", options_.name,
                                          pool_size_.slots - free_.slots, pool_size_.slots);
    for (int index = 0; index < job->request.completions; index++) Tell(*job, index, {.finish = FinishReason::kError, .error = error});
  }
  for (; admitted > 0; admitted--) {
    std::shared_ptr<Job> job = std::move(waiting_.front());
    waiting_.pop_front();
    job->begun = Clock::now();
    free_.slots -= job->demand.slots, free_.pages -= job->demand.pages;
    SequenceState sequence = job->session ? std::move(job->session->sequence_) : runner_.pool().Allocate().value();
    Begin(job, 0, std::move(sequence), job->demand, job->request.prompt);
  }
}

void Engine::Begin(const std::shared_ptr<Job>& job, int index, SequenceState sequence, Demand holds, std::span<const int32_t> unread) {
  sequence.pages.reserve(static_cast<size_t>(PagesOf(options_.context)));
  const std::span<const int32_t> before = job->session ? job->session->tokens_ : job->request.prompt;
  running_.push_back(std::make_unique<Text>(Text{.job = job,
                                                 .index = index,
                                                 .sequence = std::move(sequence),
                                                 .completion = Completion(job->request, job->listener, index, before, job->room, tokenizer_, ends_),
                                                 .holds = holds,
                                                 .unread = unread}));
}

// Of the rows that a text reads in a step, how many of the last have their logits computed.
int64_t Engine::ScoredRows(const Text& text, int64_t unread, int64_t rows) {
  if (text.job->request.prompt_logprobs && !text.prompt_read) return rows;
  return rows == unread ? 1 : 0;
}

// False, and the text has failed, where they aren't. `position`: of the token that they follow.
bool Engine::CheckFinite(Text& text, std::span<const float> logits, int64_t position) const {
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !std::isfinite(x); });
  if (bad == logits.end()) return true;
  text.completion.Fail(fmt::format("{}: the logit of token {} is {} at position {}; `bamba verify` names the tensor where that begins", options_.name,
                                   bad - logits.begin(), *bad, position));
  text.over = true;
  return false;
}

// The same for what was chosen elsewhere.
bool Engine::CheckFinite(Text& text, int32_t token, int64_t position) const {
  if (token >= 0) return true;
  text.completion.Fail(fmt::format("{}: a logit is not finite at position {}; `bamba verify` names the tensor where that begins", options_.name, position));
  text.over = true;
  return false;
}

// The rows of this step, handed to the runner. A text that the token it waits for is the last of has none.
void Engine::AddRows() {
  unread_.clear();
  for (const auto& text : running_) unread_.push_back(text->row >= 0 ? 1 : static_cast<int64_t>(text->unread.size()));
  rows_.resize(running_.size());
  ShareRows(unread_, {.most = batch_size_.rows, .prompts_beside_text = PrefillRowsBesideText(options_.execution)}, rows_);
  for (size_t i = 0; i < running_.size(); i++) {
    Text& text = *running_[i];
    if (text.row >= 0) {
      if (text.completion.left() <= 1)
        rows_[i] = 0;
      else
        runner_.AddChosen(text.sequence, text.row);
    } else {
      const auto rows = static_cast<size_t>(rows_[i]);
      runner_.Add(text.sequence, text.unread.first(rows), ScoredRows(text, unread_[i], rows_[i]));
      text.unread = text.unread.subspan(rows);
    }
    WarnOfLength(text.sequence.position + rows_[i]);
  }
}

// Whether the next batch can be queued: each text that goes on needs one row of logits, from which a token is chosen where the model runs or, at worst, here.
// On the CPU the logits are at hand anyway; there it saves looking at all of them where only the likeliest token counts.
bool Engine::Chooses() const {
  const bool ahead = options_.ahead.value_or(options_.execution.accelerator != nullptr);
  return std::all_of(running_.begin(), running_.end(), [&](const auto& text) {
    if (ahead || options_.execution.accelerator) return !text->job->request.prompt_logprobs || text->prompt_read;
    return text->completion.HasChoices() && text->job->request.sampling.temperature == 0;
  });
}

// Whether another batch can be queued after the one whose tokens are awaited: all of these are chosen where the model runs and needed nowhere else. A session's
// state must end where its text does, so it waits.
bool Engine::GoesAhead() const {
  if (!options_.ahead.value_or(options_.execution.accelerator != nullptr)) return false;
  const auto& flight = flights_[arrived_ % 2];
  if (std::any_of(flight.begin(), flight.end(), [](const Row& row) { return row.text && !row.chosen; })) return false;
  bool any = false;
  for (const auto& text : running_) {
    const bool waits = text->row >= 0, forks = !text->prompt_read && text->job->request.completions > 1;
    if (text->job->session || (waits ? forks : text->unread.empty())) return false;
    if (waits && text->completion.left() <= 1) continue;
    if (!text->completion.HasChoices()) return false;
    any = true;
  }
  return any;
}

void Engine::QueueBatch() {
  AddRows();
  std::vector<Row>& flight = flights_[queued_ % 2];
  flight.clear(), choices_.clear(), edits_.clear();
  for (size_t i = 0; i < running_.size(); i++) {
    Text& text = *running_[i];
    const int64_t awaited = std::exchange(text.row, -1), position = text.sequence.position + rows_[i];
    if (rows_[i] == 0 || !text.unread.empty()) continue;
    text.row = std::ssize(flight);
    // Further completions need the logits.
    Row row{.text = &text, .position = position, .chosen = text.completion.HasChoices() && (text.prompt_read || text.job->request.completions == 1)};
    Choice choice;
    if (row.chosen) {
      choice = text.completion.ChoiceAt(position, awaited, edits_);
      if (std::ssize(edits_) > kMostEdits) edits_.resize(static_cast<size_t>(choice.first_edit)), choice = {}, row.chosen = false;
    }
    flight.push_back(row), choices_.push_back(choice);
  }
  runner_.Queue(choices_, edits_);
  queued_++;
}

void Engine::TakeTokens() {
  const std::span<const int32_t> tokens = runner_.Arrive();
  const std::vector<Row>& flight = flights_[arrived_++ % 2];
  for (size_t i = 0; i < flight.size(); i++) {
    if (!flight[i].text) continue;
    Text& text = *flight[i].text;
    if (arrived_ == queued_) text.row = -1;
    Next next{.position = flight[i].position, .token = {}, .logits = {}, .logprobs = {}};
    const size_t forks = running_.size();
    if (flight[i].chosen) {
      next.token = tokens[i];
      if (text.job->request.top_logprobs && tokens[i] >= 0) next.logprobs = runner_.LogprobsOf(static_cast<int64_t>(i), *text.job->request.top_logprobs);
    } else {
      next.logits = runner_.LogitsOf(static_cast<int64_t>(i));
    }
    if (!text.prompt_read) ForkCompletions(text);
    Continue(text, next);
    for (size_t fork = forks; fork < running_.size(); fork++) Continue(*running_[fork], next);
  }
}

void Engine::RunStep() {
  if (arrived_ == queued_) {
    if (!Chooses()) return RunBatch();
    QueueBatch();
  }
  if (GoesAhead()) QueueBatch();
  TakeTokens();
}

// A step whose logits are all looked at here.
void Engine::RunBatch() {
  AddRows();
  Tensor logits = runner_.Run();
  int64_t used = 0;
  const auto next_row = [&] {
    if (used == logits.rows()) logits = runner_.MoreLogits(), used = 0;
    return std::span<const float>(logits.Row<float>(used++), static_cast<size_t>(logits.cols()));
  };

  const size_t members = running_.size();
  for (size_t i = 0; i < members; i++) {
    Text& text = *running_[i];
    for (int64_t rows = ScoredRows(text, unread_[i], rows_[i]) - (text.unread.empty() ? 1 : 0); rows > 0; rows--) {
      const auto row = next_row();
      const auto position = static_cast<int64_t>(text.completion.result().prompt_logprobs.size());
      if (!text.over && CheckFinite(text, row, position)) text.completion.ScorePrompt(row);
    }
    if (!text.unread.empty()) continue;
    const auto row = next_row();
    if (text.over) continue;
    const size_t forks = running_.size();
    if (!text.prompt_read) ForkCompletions(text);
    const Next next{.position = text.sequence.position, .token = {}, .logits = row, .logprobs = {}};
    Continue(text, next);
    for (size_t fork = forks; fork < running_.size(); fork++) Continue(*running_[fork], next);
  }
}

// The prompt was read once; each further completion goes on from a copy of its state.
void Engine::ForkCompletions(Text& first) {
  const std::shared_ptr<Job>& job = first.job;
  const int completions = job->request.completions;
  if (completions == 1) return;
  first.holds = {.slots = 1, .pages = job->demand.pages / completions};
  for (int index = 1; index < completions; index++) Begin(job, index, runner_.pool().Fork(first.sequence).value(), first.holds, {});
}

// What a listener throws must not take the other texts' tokens of this step with it.
template <typename Body>
bool Engine::Guarded(const Body& body) {
  try {
    body();
    return true;
  } catch (...) {
    if (!thrown_) thrown_ = std::current_exception();
    return false;
  }
}

void Engine::Continue(Text& text, Next next) {
  Generation& result = text.completion.result();
  if (!text.prompt_read) {
    text.prompt_read = Clock::now();
    result.prompt_seconds = Seconds(*text.prompt_read - text.job->begun);
  } else {
    result.steps++;
  }
  if (next.token ? !CheckFinite(text, *next.token, next.position - 1) : !CheckFinite(text, next.logits, next.position - 1)) return;
  bool goes_on = false;
  text.quiet = !Guarded([&] {
    goes_on = next.token ? text.completion.Take(*next.token, std::move(next.logprobs)) : text.completion.Choose(next.logits, next.position, sampler_space_);
  });
  if (text.quiet) text.completion.End(FinishReason::kInterrupted);
  text.over = !goes_on;
  if (text.over) return;
  text.last = text.completion.last();
  if (text.row < 0) text.unread = {&text.last, 1};  // else it is being read
}

// Gives back what ended texts hold, and tells their results.
void Engine::RemoveEnded() {
  for (const auto& text : running_) {
    if (!text->over) continue;
    for (auto& flight : flights_)
      for (Row& row : flight)
        if (row.text == text.get()) row.text = nullptr;
    const Job& job = *text->job;
    if (text->prompt_read) text->completion.result().step_seconds = Seconds(Clock::now() - *text->prompt_read);
    if (job.session)
      job.session->sequence_ = std::move(text->sequence);
    else
      runner_.pool().Free(text->sequence);
    free_.slots += text->holds.slots, free_.pages += text->holds.pages;
    if (!text->quiet) Guarded([&] { text->completion.Flush(); });
    Tell(job, text->index, std::move(text->completion.result()));
    // An interrupted prompt has not been forked.
    for (int other = 1; other < text->holds.slots; other++) Tell(job, other, {.finish = FinishReason::kInterrupted});
  }
  std::erase_if(running_, [](const auto& text) { return text->over; });
}

void Engine::Tell(const Job& job, int index, Generation generation) {
  if (job.listener.done) Guarded([&] { job.listener.done(index, std::move(generation)); });
}

void Engine::WarnOfLength(int64_t position) {
  const int64_t trained = model_.config.context;
  if (trained > 0 && position > trained && !std::exchange(warned_, true) && options_.warn)
    options_.warn(fmt::format("{}: the text is longer than the {} tokens that the model was made for (max_position_embeddings); it may lose its way",
                              options_.name, Thousands(trained)));
}

Generation Engine::Generate(const Request& request, const std::function<void(std::string_view)>& emit) {
  Check(request);
  Generation result;
  Generate(request, emit, nullptr, result);
  return result;
}

void Engine::Generate(const Request& request, const std::function<void(std::string_view)>& emit, Session* session, Generation& result) {
  CHECK_EQ(request.completions, 1);
  bool done = false;
  const Listener listener{.text = [&](int, std::string_view piece) { emit(piece); },
                          .done = [&](int, Generation&& generation) { result = std::move(generation), done = true; }};
  const RequestId id = Queue(request, listener, session);
  try {
    while (!done) Step();
  } catch (...) {
    if (!done) Cancel(id);
    throw;
  }
  if (result.finish == FinishReason::kError) throw Error("{}", result.error);
}

}  // namespace bamba
