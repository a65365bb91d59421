#include "eval/trials.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "engine/batch_runner.h"
#include "engine/device_model.h"
#include "engine/session_file.h"

namespace bamba {
namespace {

// Long enough for several chunks of the scan and more than one block of keys.
constexpr int64_t kMostTokens = 200, kMostWrong = kSsdChunk, kMostMembers = 3;
constexpr BatchSize kBatch{.rows = 256, .scored = 256};

using Random = std::mt19937_64;

// From low to high, both included.
int64_t Pick(Random& random, int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); }

bool Chance(Random& random, uint64_t one_in) { return random() % one_in == 0; }

std::vector<int32_t> RandomTokens(Random& random, int64_t n, int64_t vocab) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t& id : tokens) id = static_cast<int32_t>(Pick(random, 0, vocab - 1));
  return tokens;
}

int64_t DifferingBits(std::span<const char> a, std::span<const char> b) {
  CHECK_EQ(a.size(), b.size());
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return 0;
  int64_t bits = 0;
  for (size_t i = 0; i < a.size(); i++) bits += std::popcount(static_cast<unsigned>(static_cast<unsigned char>(a[i] ^ b[i])));
  return bits;
}

std::span<const char> BytesOf(const Tensor& t) { return {static_cast<const char*>(t.data()), t.bytes()}; }

// State as bytes: what a snapshot keeps.
struct Image {
  int64_t position, reach;
  std::vector<char> bytes;
};

Image ImageOf(const StatePool& pool, const SequenceState& sequence, int64_t reach) {
  Image image{sequence.position, reach, {}};
  image.bytes.reserve(static_cast<size_t>(pool.ImageBytes(image.position, reach)));
  pool.Save(sequence, reach, [&](const void* data, size_t bytes) {
    image.bytes.insert(image.bytes.end(), static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
  });
  return image;
}

// A file that is gone at the end.
struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() / fmt::format("bamba-trials-{:08x}.session", std::random_device{}())).string();
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

// What all trials share. Each trial leaves the pools' slots and pages free, but not clean.
struct Stage {
  const Model& model;
  const Model placed;                 // where it is executed
  BatchRunner alone, plain, history;  // history: a pool with roll_back
  SessionIdentity identity;
  std::vector<std::unique_ptr<ThreadPool>> threads;
  TemporaryFile file;

  static PoolSize Pool(const Model& model, int32_t slots, bool roll_back) {
    const int64_t pages = model.config.Count(BlockKind::kAttention) > 0 ? slots * PagesFor(kMostTokens + kMostWrong) : 0;
    return {.slots = slots, .pages = pages, .roll_back = roll_back};
  }
  static constexpr int32_t kSlots = kMostMembers + 2;  // one that a sequence moves to, and a stranger

  static int64_t Bytes(const Model& model, const Execution& execution) {
    int64_t bytes = 3 * static_cast<int64_t>(StepWorkspace(model, kBatch.rows, kBatch.scored, execution));
    for (PoolSize pool : {Pool(model, 1, false), Pool(model, kSlots, false), Pool(model, kSlots, true)}) {
      pool.inputs = ActivationDtype(model, execution);
      bytes += static_cast<int64_t>(StatePool::Bytes(model.config, pool));
    }
    return bytes;
  }

  Stage(const Model& m, const TrialOptions& options)
      : model(m),
        placed(ModelFor(options.execution, m)),
        alone(placed, Pool(m, 1, false), kBatch, options.execution),
        plain(placed, Pool(m, kSlots, false), kBatch, options.execution),
        history(placed, Pool(m, kSlots, true), kBatch, options.execution),
        identity(IdentityOf(m, options.execution, *history.context().threads)) {
    if (options.device)
      for (BatchRunner* runner : {&alone, &plain, &history}) runner->context().device = options.device;
    for (int n : {1, 2, 3, options.execution.threads}) threads.push_back(std::make_unique<ThreadPool>(n));
  }
};

// A sequence of a trial, and what it must come to.
struct Member {
  std::vector<int32_t> tokens;
  std::vector<char> logits;  // [tokens, vocab] f32
  Image end;
  BatchRunner* runner;  // where it is; null once it was compared
  SequenceState sequence;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  bool Complete() const { return sequence.position == size(); }
};

class Trial {
 public:
  Trial(Stage& stage, uint64_t seed, TrialReport& report) : stage_(stage), seed_(seed), random_(seed), report_(report) {}

  void Run() {
    const bool precise = Chance(random_, 2) || stage_.model.stored;
    for (BatchRunner* runner : {&stage_.alone, &stage_.plain, &stage_.history})
      if (!runner->context().accelerator) runner->context().precise = precise;
    members_.resize(static_cast<size_t>(Pick(random_, 1, kMostMembers)));
    for (Member& m : members_) Begin(m);
    while (!std::all_of(members_.begin(), members_.end(), [](const Member& m) { return m.Complete(); })) {
      Member& m = members_[random_() % members_.size()];
      if (Chance(random_, 2)) Disturb(m);
      PlayBatch(Chance(random_, 2) ? stage_.plain : stage_.history);
    }
    for (Member& m : members_) {
      if (Chance(random_, 4)) Disturb(m);
      while (!m.Complete()) PlayBatch(*m.runner);
      const Image end = ImageOf(m.runner->pool(), m.sequence, m.sequence.position);
      Compare(end.bytes, m.end.bytes, [&] { return fmt::format("the state after {} tokens", m.size()); });
      report_.states++;
      m.runner->pool().Free(m.sequence);
      m.runner = nullptr;
    }
    report_.trials++, report_.failed += failed_;
  }

 private:
  // The sequence alone, in one call, on one thread.
  void Begin(Member& m) {
    m.tokens = RandomTokens(random_, Chance(random_, 4) ? Pick(random_, 1, kMostTokens) : Pick(random_, 1, 70), stage_.model.config.vocab);
    StatePool& pool = stage_.alone.pool();
    SequenceState sequence = pool.Allocate().value();
    stage_.alone.Add(sequence, m.tokens, m.size());
    const auto logits = BytesOf(stage_.alone.Run());
    m.logits.assign(logits.begin(), logits.end());
    m.end = ImageOf(pool, sequence, sequence.position);
    pool.Free(sequence);

    m.runner = Chance(random_, 2) ? &stage_.plain : &stage_.history;
    m.sequence = m.runner->pool().Allocate().value();
  }

  template <typename What>
  void Compare(std::span<const char> ours, std::span<const char> alone, const What& what) {
    const int64_t bits = DifferingBits(ours, alone);
    if (bits == 0) return;
    report_.differing_bits += bits;
    failed_ = true;
    if (report_.first.empty()) report_.first = fmt::format("{} differs in {} bits (--trials 1 --seed {})", what(), bits, seed_);
  }

  Tensor RunOn(BatchRunner& runner) {
    runner.context().threads = stage_.threads[random_() % stage_.threads.size()].get();
    report_.batches++;
    return runner.Run();
  }

  // Some more tokens of some members, in any order, maybe beside a stranger.
  void PlayBatch(BatchRunner& runner) {
    struct Part {
      Member* member;
      int64_t first, rows, scored;  // the last ones
    };
    std::vector<Part> parts;
    int64_t left = kBatch.rows;
    for (Member& m : members_) {
      if (m.runner != &runner || m.Complete() || Chance(random_, 4)) continue;
      const int64_t most = std::min(left, m.size() - m.sequence.position);
      if (most == 0) continue;
      const int64_t rows = Chance(random_, 2) ? 1 : Pick(random_, 1, Chance(random_, 3) ? most : std::min<int64_t>(most, 45));
      parts.push_back({&m, m.sequence.position, rows, Chance(random_, 2) ? rows : Pick(random_, 0, rows)});
      left -= rows;
    }
    if (parts.empty()) return;
    std::shuffle(parts.begin(), parts.end(), random_);
    const size_t before_stranger = random_() % (2 * parts.size());  // none where past the end
    SequenceState stranger;
    for (size_t i = 0; i < parts.size(); i++) {
      if (i == before_stranger && left > 0) {
        stranger = runner.pool().Allocate().value();
        runner.Add(stranger, RandomTokens(random_, Pick(random_, 1, std::min(left, kMostWrong)), stage_.model.config.vocab), 0);
      }
      const Part& p = parts[i];
      runner.Add(p.member->sequence, std::span(p.member->tokens).subspan(static_cast<size_t>(p.first), static_cast<size_t>(p.rows)), p.scored);
    }
    const Tensor logits = RunOn(runner);
    int64_t row = 0;
    for (const Part& p : parts) {
      for (int64_t i = p.rows - p.scored; i < p.rows; i++, row++) {
        const size_t bytes = logits.At(row).bytes();
        const auto alone = std::span<const char>(p.member->logits).subspan(static_cast<size_t>(p.first + i) * bytes, bytes);
        Compare(BytesOf(logits.At(row)), alone, [&] { return fmt::format("row {} of the logits of {} tokens", p.first + i, p.member->size()); });
      }
    }
    report_.rows += row;
    if (stranger.slot >= 0) runner.pool().Free(stranger);
  }

  void FeedWrong(BatchRunner& runner, SequenceState& sequence, int64_t n) {
    if (n == 0) return;
    runner.Add(sequence, RandomTokens(random_, n, stage_.model.config.vocab), 0);
    RunOn(runner);
  }

  void Disturb(Member& m) {
    switch (Pick(random_, 0, 3)) {
      case 0: return Fork(m);
      case 1: return Move(m);
      case 2: return RollBack(m);
      case 3: return Chance(random_, 4) ? ThroughFile(m) : Move(m);
    }
  }

  // Two of a sequence; one reads on wrong tokens and goes.
  void Fork(Member& m) {
    SequenceState other = m.runner->pool().Fork(m.sequence).value();
    if (Chance(random_, 2)) std::swap(other, m.sequence);
    FeedWrong(*m.runner, other, Pick(random_, 0, kMostWrong));
    m.runner->pool().Free(other);
    report_.forks++;
  }

  // A snapshot, wrong tokens, and back: in its own slot or in another, maybe of the other pool.
  void Move(Member& m) {
    const Image image = ImageOf(m.runner->pool(), m.sequence, Pick(random_, m.runner->pool().Reach(m.sequence), m.sequence.position));
    FeedWrong(*m.runner, m.sequence, Pick(random_, 0, kMostWrong));
    Restore(m, image.position, image.reach, image.bytes);
    report_.snapshots++;
  }

  void ThroughFile(Member& m) {
    const auto read = std::span<const int32_t>(m.tokens).first(static_cast<size_t>(m.sequence.position));
    WriteSession(stage_.file.path, stage_.identity, read, m.runner->pool(), m.sequence);
    const SessionFile file(stage_.file.path, stage_.identity, stage_.model.config, m.runner->pool(), kMostTokens);
    Restore(m, file.position(), file.reach(), file.image());
    report_.files++;
  }

  void Restore(Member& m, int64_t position, int64_t reach, std::span<const char> image) {
    if (Chance(random_, 2)) {
      m.runner->pool().Free(m.sequence);
      m.runner = Chance(random_, 2) ? &stage_.plain : &stage_.history;
      m.sequence = m.runner->pool().Allocate().value();
    }
    CHECK(m.runner->pool().Restore(m.sequence, position, reach, image));
  }

  // Back over wrong tokens, or over right ones that then come again.
  void RollBack(Member& m) {
    if (m.runner != &stage_.history) return;
    StatePool& pool = m.runner->pool();
    if (Chance(random_, 2)) {
      pool.RollBack(m.sequence, Pick(random_, 0, m.sequence.position - pool.Reach(m.sequence)));
    } else {
      const int64_t wrong = Pick(random_, 0, kSsdChunk - (m.sequence.furthest - m.sequence.position));
      FeedWrong(*m.runner, m.sequence, wrong);
      pool.RollBack(m.sequence, wrong);
    }
    report_.roll_backs++;
  }

  Stage& stage_;
  uint64_t seed_;
  Random random_;
  TrialReport& report_;
  std::vector<Member> members_;
  bool failed_ = false;
};

}  // namespace

TrialReport RunTrials(const Model& model, const TrialOptions& options, const std::function<void(const TrialReport&)>& progress) {
  const MemoryPlan plan = PlanMemory(model, {.slots = 0}, static_cast<size_t>(Stage::Bytes(model, options.execution)), options.execution);
  CheckFits(plan, MemoryLeft(options.execution), options.name);
  Stage stage(model, options);
  TrialReport report;
  for (int64_t i = 0; i < options.trials; i++) {
    Trial(stage, options.seed + static_cast<uint64_t>(i), report).Run();
    progress(report);
  }
  return report;
}

}  // namespace bamba
