#include "eval/speed.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/check.h"
#include "engine/batch_runner.h"
#include "model/params.h"
#include "model/random_weights.h"
#include "ops/cpu/limits.h"

namespace bamba {
namespace {

using Clock = std::chrono::steady_clock;

int64_t Length(const SpeedTest& test) { return test.context + test.prompt + test.generate; }

PoolSize PoolOf(const Model& model, const SpeedTest& test) {
  const bool attention = model.config.Count(BlockKind::kAttention) > 0;
  return {.slots = static_cast<int32_t>(test.batch), .pages = attention ? test.batch * PagesFor(Length(test)) : 0};
}

int64_t MostRows(const Config& c, const SpeedTest& test) { return test.generate > 0 ? test.batch : std::min(PrefillRows(c, test.execution), test.tokens()); }

// A call of the model: the next rows of sequences [first, first + rows.size()). Those that come to an end, or write, get logits.
struct Call {
  size_t first = 0;
  std::vector<int64_t> rows;
  int64_t total = 0, scored = 0;
};

// The call after `done` tokens. Prompts are read one after the other, as many rows at a time as there may be.
Call CallAfter(const Config& c, const SpeedTest& test, int64_t done) {
  if (test.generate > 0) return {0, std::vector<int64_t>(static_cast<size_t>(test.batch), 1), test.batch, test.batch};
  Call call{static_cast<size_t>(done / test.prompt)};
  for (int64_t at = done; at < test.tokens() && call.total < MostRows(c, test);) {
    const int64_t left = test.prompt - at % test.prompt, rows = std::min(left, MostRows(c, test) - call.total);
    call.rows.push_back(rows);
    call.total += rows, call.scored += rows == left, at += rows;
  }
  return call;
}

// Bytes of state that the next row of a sequence at `position` reads.
double StateBytes(const Config& c, int64_t position, Dtype input_dtype) {
  const int64_t boundary = position >= kSsdChunk ? c.inner() * c.mamba_state : 0, inputs = (c.conv_dim() + c.mamba_heads) * (position % kSsdChunk);
  const int64_t keys_values = 2 * c.kv_heads * c.head_dim * position, mamba = c.Count(BlockKind::kMamba2), attention = c.Count(BlockKind::kAttention);
  return static_cast<double>(mamba * boundary) * sizeof(float) +
         static_cast<double>(mamba * inputs + attention * keys_values) * static_cast<double>(SizeOf(input_dtype));
}

// A text's step may be padded on an accelerator (engine/batch_runner.h): there is room for it.
BatchSize LargestBatch(const Config& c, const SpeedTest& test) {
  const int64_t room = test.execution.accelerator && test.generate > 0 ? 32 : 0;
  const int64_t rows = MostRows(c, test);
  return {.rows = rows + room, .scored = std::min(test.batch, rows) + room};
}

// The sequences of a test, moved on by calls.
class Player {
 public:
  Player(const Model& model, const SpeedTest& test)
      : vocab_(static_cast<uint64_t>(model.config.vocab)), test_(test), runner_(model, PoolOf(model, test), LargestBatch(model.config, test), test.execution) {
    if (test.context > 0) MakeUpState();
    for (int64_t i = 0; i < test.batch; i++) sequences_.push_back(runner_.pool().Allocate().value());
    tokens_.reserve(static_cast<size_t>(MostRows(model.config, test)));
  }

  // Back to the test's context.
  void Rewind() {
    for (SequenceState& sequence : sequences_) sequence.position = sequence.furthest = test_.context;
  }

  void Run(const Call& call) {
    for (size_t i = 0; i < call.rows.size(); i++) {
      SequenceState& sequence = sequences_[call.first + i];
      tokens_.clear();
      for (int64_t row = 0; row < call.rows[i]; row++) tokens_.push_back(NextToken());
      const bool scored = test_.generate > 0 || sequence.position + call.rows[i] == Length(test_);
      runner_.Add(sequence, tokens_, scored ? 1 : 0);
    }
    // What a prompt's reader waits for, too, is one token.
    if (!test_.execution.accelerator) {
      CHECK_EQ(runner_.Run().rows(), call.scored);
      return;
    }
    choices_.resize(static_cast<size_t>(call.scored));
    runner_.Queue(choices_, {});
    if (++queued_ == 2 || test_.generate == 0) Arrive();  // texts go on before their tokens are known, as in the engine
  }

  // Until what Run has begun is done.
  void Finish() {
    while (queued_ > 0) Arrive();
  }

 private:
  void Arrive() {
    runner_.Arrive();
    queued_--;
  }

  int32_t NextToken() {
    random_ = random_ * 6364136223846793005 + 1442695040888963407;  // Knuth's MMIX
    return static_cast<int32_t>((random_ >> 33) % vocab_);
  }

  void MakeUpState() {
    uint64_t seed = 1;
    const auto fill = [&](const Tensor& tensor) {
      if (!tensor) return;
      if (test_.execution.accelerator)
        test_.execution.accelerator->FillRandom(tensor, seed++, -1, 1);
      else
        FillRandom(*runner_.context().threads, tensor, seed++, -1, 1);
    };
    for (const MambaState& state : runner_.pool().states().mamba) fill(state.conv), fill(state.xbc), fill(state.dt), fill(state.ssm);
    for (const KvPages& kv : runner_.pool().states().kv) fill(kv.k), fill(kv.v);
  }

  const uint64_t vocab_;
  const SpeedTest test_;
  BatchRunner runner_;
  std::vector<SequenceState> sequences_;
  std::vector<int32_t> tokens_;
  std::vector<Choice> choices_;  // the likeliest
  int queued_ = 0;
  uint64_t random_ = 1;
};

// So much is read to measure bandwidth: as much as a step reads, since a model that stays in the caches has their speed for its limit.
size_t ProbeBytes(const Model& model, const SpeedTest& test) {
  if (test.execution.accelerator) return 0;  // before anything else takes the memory
  constexpr double kLeast = 1 << 24;
  const double step = LimitSeconds(model, {.batch = test.batch, .context = test.context, .generate = 1, .execution = test.execution},
                                   {1, std::numeric_limits<double>::infinity()});
  return static_cast<size_t>(std::clamp(step, kLeast, static_cast<double>(cpu::kLimitBytes)));
}

// What a GPU can do: its read bandwidth, and the products that its ops get with matrices large enough to keep all of it busy.
MachineRates AcceleratorRates(const Model& model, const Execution& execution) {
  constexpr int64_t kSize = 8192;
  constexpr int kTimes = 5;
  const Dtype activations = ActivationDtype(model, execution), weights = MainDtype(model);
  Runtime runtime(model, execution, static_cast<size_t>(kSize * kSize) * (2 * SizeOf(activations) + SizeOf(weights)) + 4 * Workspace::kAlign);
  Context& ctx = runtime.context();
  const Tensor x = ctx.Temp({kSize, kSize}), w = ctx.workspace->Take(weights, {kSize, kSize}), y = ctx.Temp({kSize, kSize});
  Accelerator& accelerator = *execution.accelerator;
  accelerator.FillRandom(x, 1, -1, 1), accelerator.FillRandom(w, 2, -1, 1);
  const auto products = [&](int times) {
    return accelerator.Seconds([&] {
      for (int i = 0; i < times; i++) ops::Linear(ctx, x, {w, {}}, y);
    });
  };
  products(1);
  double best = products(kTimes);
  for (int i = 0; i < 2; i++) best = std::min(best, products(kTimes));
  return {accelerator.ReadBandwidth(), kTimes * 2.0 * kSize * kSize * kSize / best};
}

// The machine's read bandwidth over the time of a measurement, asked for at moments of it that don't count.
class Limits {
 public:
  Limits(const Model& model, const SpeedTest& test)
      : accelerator_(test.execution.accelerator), threads_(test.execution.threads), probe_(threads_, ProbeBytes(model, test)) {
    if (accelerator_) {
      const MachineRates rates = AcceleratorRates(model, test.execution);
      operations_ = rates.operations, sum_ = rates.bytes, samples_ = 1;
      return;
    }
    operations_ = cpu::LinearRate(MainDtype(model), test.execution.precise)(threads_, 0.2);
    Sample(0.2);
  }

  // Now and then; the seconds that it took.
  double MaySample() {
    if (accelerator_) return 0;  // nobody shares a GPU's memory
    constexpr double kEvery = 0.25, kFor = 0.02;
    const auto start = Clock::now();
    if (std::chrono::duration<double>(start - last_).count() > kEvery) Sample(kFor);
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  MachineRates Rates() const { return {sum_ / samples_, operations_}; }

 private:
  void Sample(double seconds) {
    sum_ += probe_.Bandwidth(seconds), samples_++;
    last_ = Clock::now();
  }

  Accelerator* accelerator_;
  ThreadPool threads_;
  cpu::ReadProbe probe_;
  double operations_, sum_ = 0, samples_ = 0;
  Clock::time_point last_;
};

}  // namespace

double LimitSeconds(const Model& model, const SpeedTest& test, MachineRates rates) {
  const Config& c = model.config;
  Weights weights = model.weights;
  // Of all but embedding and head. What follows the last mixer need be done for scored rows only, and within it what doesn't mix rows, too: z, the gated norm
  // and out_proj, or o.
  struct Part {
    double bytes = 0, matrix_numbers = 0;
  } every, scored_only;
  const size_t last_mixer = LastMixer(weights);
  const SubBlock& mixer = weights.blocks[last_mixer];
  for (const Param& p : Parameters(c, weights)) {
    const bool late = p.block > static_cast<int>(last_mixer) || p.tensor == &mixer.mamba.norm || p.tensor == &mixer.mamba.out_proj.weight ||
                      p.tensor == &mixer.attention.o.weight;
    const int64_t rows = p.shape[0], scored_rows = late ? rows : p.tensor == &mixer.mamba.in_proj.weight ? c.inner() : 0;
    const auto add = [&](Part& part, int64_t count) {
      if (p.role != Role::kEmbedding) part.bytes += static_cast<double>(static_cast<int64_t>(p.tensor->bytes()) / rows * count);
      if (p.role == Role::kMatrix) part.matrix_numbers += static_cast<double>(p.size() / rows * count);
    };
    add(every, rows - scored_rows), add(scored_only, scored_rows);
  }
  const Tensor &head = weights.head.weight, &embedding = weights.embedding.weight;
  const double row_bytes = static_cast<double>(static_cast<size_t>(c.dim) * SizeOf(embedding.dtype()));

  const Dtype inputs = ActivationDtype(model, test.execution);
  double seconds = 0;
  for (int64_t done = 0; done < test.tokens();) {
    const Call call = CallAfter(model.config, test, done);
    double bytes = every.bytes, operations = 2 * every.matrix_numbers * static_cast<double>(call.total);
    if (call.scored > 0) {
      bytes += scored_only.bytes + static_cast<double>(head.bytes());
      operations += 2 * (scored_only.matrix_numbers + static_cast<double>(head.size())) * static_cast<double>(call.scored);
    }
    if (!c.tied || call.scored == 0) bytes += row_bytes * static_cast<double>(call.total);
    for (size_t i = 0; i < call.rows.size(); i++)
      bytes += StateBytes(c, test.context + (test.generate > 0 ? done / test.batch : i == 0 ? done % test.prompt : 0), inputs);
    seconds += std::max(bytes / rates.bytes, operations / rates.operations);
    done += call.total;
  }
  return seconds;
}

MemoryPlan PlanSpeed(const Model& model, const SpeedTest& test) {
  const BatchSize size = LargestBatch(model.config, test);
  return PlanMemory(model, PoolOf(model, test), StepWorkspace(model, size.rows, size.scored, test.execution) + ProbeBytes(model, test), test.execution);
}

std::optional<SpeedResult> MeasureSpeed(const Model& model, const SpeedTest& test, int repetitions, const std::function<bool(int64_t)>& proceed) {
  SpeedResult result;
  Limits limits(model, test);
  Player player(model, test);
  player.Rewind();
  if (!proceed(0)) return std::nullopt;
  player.Run(CallAfter(model.config, test, 0));
  player.Finish();
  for (int repetition = 0; repetition < repetitions; repetition++) {
    player.Rewind();
    limits.MaySample();
    double aside = 0;
    const auto start = Clock::now();
    for (int64_t done = 0; done < test.tokens();) {
      if (!proceed(repetition * test.tokens() + done)) return std::nullopt;
      const Call call = CallAfter(model.config, test, done);
      player.Run(call);
      done += call.total;
      if (done < test.tokens()) aside += limits.MaySample();
    }
    player.Finish();
    result.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() - aside);
  }
  limits.MaySample();
  result.rates = limits.Rates();
  return result;
}

}  // namespace bamba
