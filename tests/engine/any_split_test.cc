// However a sequence's tokens are cut into calls, whatever shares the batch, wherever its state lies and with any number of threads: the same bits.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "tests/engine/player.h"
#include "tests/support/random_model.h"

namespace bamba {
namespace {

bool Full() { return std::getenv("BAMBA_FULL") != nullptr; }

// A sequence alone in one call on one thread: what every other way is held against.
struct Alone {
  Player player;
  SequenceState sequence;
  std::vector<float> logits;

  Alone(const Model& model, std::span<const int32_t> tokens, int64_t scored)
      : player(model, {.slots = 1, .pages = PagesFor(static_cast<int64_t>(tokens.size()))}, 1, static_cast<int64_t>(tokens.size())), sequence(player.Begin()) {
    logits = player.Play({{&sequence, tokens}}, scored)[0];
  }
};

struct Trial {
  std::vector<int32_t> tokens;
  SequenceState sequence;
  std::vector<float> logits;
  size_t done = 0;
};

// Plays all sequences to their ends in batches of random members and sizes; some sequences start late, in slots and pages that others have used.
void PlayInRandomBatches(Player& player, std::vector<Trial>& trials, Random& random) {
  while (true) {
    std::vector<Part> parts;
    std::vector<Trial*> members;
    for (Trial& t : trials) {
      const int64_t left = static_cast<int64_t>(t.tokens.size() - t.done);
      if (left == 0 || random() % 3 == 0) continue;
      if (t.sequence.slot < 0) t.sequence = player.Begin();
      const int64_t rows = random() % 2 ? 1 : Pick(random, 0, std::min<int64_t>(left, random() % 4 ? 45 : 200));
      parts.push_back({&t.sequence, std::span(t.tokens).subspan(t.done, static_cast<size_t>(rows))});
      members.push_back(&t);
    }
    std::vector<size_t> order(parts.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<Part> batch;
    for (size_t i : order) batch.push_back(parts[i]);
    if (!batch.empty()) {
      const auto logits = player.Play(batch, 1 << 20);
      for (size_t i = 0; i < order.size(); i++) {
        Trial& t = *members[order[i]];
        t.logits.insert(t.logits.end(), logits[i].begin(), logits[i].end());
        t.done += batch[i].tokens.size();
      }
    }
    if (std::all_of(trials.begin(), trials.end(), [](const Trial& t) { return t.done == t.tokens.size(); })) return;
  }
}

TEST(AnySplit, SameBitsInRandomBatches) {
  for (uint64_t seed = 0; seed < 300; seed++) {
    SCOPED_TRACE("trial " + std::to_string(seed));
    Random random(seed);
    const Config config = RandomConfig(random);
    const Dtype dtypes[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};
    const Model model = RandomModel(config, seed, dtypes[random() % 3]);
    std::vector<Trial> trials(static_cast<size_t>(Pick(random, 1, 4)));
    int64_t rows = 0, pages = 0;
    for (Trial& t : trials) {
      t.tokens = RandomTokens(random, Pick(random, 1, random() % 3 ? 70 : 300), config);
      rows += static_cast<int64_t>(t.tokens.size()), pages += PagesFor(static_cast<int64_t>(t.tokens.size())) + 1;
    }
    Player player(model, {.slots = static_cast<int32_t>(trials.size()) + 2, .pages = pages, .roll_back = random() % 2 == 0}, static_cast<int>(1 + seed % 3),
                  rows);

    // A stranger comes and goes, so that slots and pages are neither clean nor in order.
    SequenceState stranger = player.Begin(), gone = player.Begin();
    const auto noise = RandomTokens(random, std::min<int64_t>(rows, 40), config);
    player.Play({{&gone, noise}}, 0);
    player.pool().Free(gone);
    if (random() % 2) player.pool().Free(stranger);

    PlayInRandomBatches(player, trials, random);
    for (Trial& t : trials) {
      Alone alone(model, t.tokens, 1 << 20);
      ASSERT_TRUE(SameBits(t.logits, alone.logits));
      ASSERT_EQ(StateDifference(config, player.pool().states(), t.sequence, alone.player.pool().states(), alone.sequence), "");
    }
  }
}

// The comparison sees what it should: one other token in the sequence's last chunk, or one flipped bit.
TEST(AnySplit, TheComparisonCanFail) {
  Random random(1);
  const Model model = RandomModel(TinyConfig(2, {1}), 1);
  auto tokens = RandomTokens(random, 80, model.config);
  Alone a(model, tokens, 80), same(model, tokens, 80);
  EXPECT_EQ(StateDifference(model.config, a.player.pool().states(), a.sequence, same.player.pool().states(), same.sequence), "");
  same.player.pool().states().mamba[0].ssm.Row<float>(0)[model.config.mamba_state + 1] += 1e-3f;
  EXPECT_EQ(StateDifference(model.config, a.player.pool().states(), a.sequence, same.player.pool().states(), same.sequence), "boundary state of sub-block 0");
  tokens.back() ^= 1;
  Alone b(model, tokens, 80);
  EXPECT_FALSE(SameBits(a.logits, b.logits));
  EXPECT_EQ(StateDifference(model.config, a.player.pool().states(), a.sequence, b.player.pool().states(), b.sequence), "conv input 79 of sub-block 0");
}

// Forgetting n tokens is as if they had never come, at any position and by any n up to a chunk.
TEST(RollBack, AsIfTheTokensHadNeverCome) {
  for (uint64_t seed = 0; seed < 100; seed++) {
    SCOPED_TRACE("trial " + std::to_string(seed));
    Random random(1000 + seed);
    const Model model = RandomModel(RandomConfig(random), seed);
    const int64_t length = 200;
    const auto kept = RandomTokens(random, length, model.config), wrong = RandomTokens(random, length, model.config);
    Player player(model, {.slots = 1, .pages = PagesFor(length) + 1, .roll_back = true}, 1, length);
    SequenceState sequence = player.Begin();
    std::vector<float> last;
    while (sequence.position < length) {
      // Some tokens that stay, then some that are taken back.
      const int64_t at = sequence.position, stay = Pick(random, 1, std::min<int64_t>(length - at, random() % 2 ? 3 : 60));
      last = player.Play({{&sequence, std::span(kept).subspan(static_cast<size_t>(at), static_cast<size_t>(stay))}}, 1)[0];
      const int64_t reach = kSsdChunk - (sequence.furthest - sequence.position), back = std::min(Pick(random, 0, reach), length - sequence.position);
      player.Play({{&sequence, std::span(wrong).first(static_cast<size_t>(back))}}, 0);
      player.pool().RollBack(sequence, back);
    }
    Alone alone(model, kept, 1);
    ASSERT_TRUE(SameBits(last, alone.logits));
    ASSERT_EQ(StateDifference(model.config, player.pool().states(), sequence, alone.player.pool().states(), alone.sequence), "");
  }
}

// Roll-back over a boundary by exactly a chunk, from a boundary and from the token before.
TEST(RollBack, ByAWholeChunk) {
  Random random(3);
  const Model model = RandomModel(TinyConfig(3, {1}), 3);
  const auto tokens = RandomTokens(random, 130, model.config);
  for (int64_t position : {kSsdChunk, 2 * kSsdChunk - 1, 2 * kSsdChunk, 3 * kSsdChunk + 1}) {
    Player player(model, {.slots = 1, .pages = 3, .roll_back = true}, 1, 130);
    SequenceState sequence = player.Begin();
    player.Play({{&sequence, std::span(tokens).first(static_cast<size_t>(position))}}, 0);
    player.pool().RollBack(sequence, kSsdChunk);
    const auto rest = player.Play({{&sequence, std::span(tokens).subspan(static_cast<size_t>(sequence.position))}}, 1);
    EXPECT_TRUE(SameBits(rest[0], Alone(model, tokens, 1).logits)) << position;
  }
}

// A long text in one call and in calls of sizes from 1 to 10,000.
void LongText(const Config& config, int64_t length) {
  const Model model = RandomModel(config, 7);
  Random random(7);
  const auto tokens = RandomTokens(random, length, config);
  Alone alone(model, tokens, 1);
  const int64_t most = 10000;
  Player player(model, {.slots = 1, .pages = PagesFor(length)}, 2, most);
  SequenceState sequence = player.Begin();
  std::vector<float> last;
  while (sequence.position < length) {
    const double size = std::exp(std::uniform_real_distribution<double>(0, std::log(static_cast<double>(most)))(random));
    const auto rows = std::min(static_cast<int64_t>(size), length - sequence.position);
    last = player.Play({{&sequence, std::span(tokens).subspan(static_cast<size_t>(sequence.position), static_cast<size_t>(rows))}}, 1)[0];
  }
  EXPECT_TRUE(SameBits(last, alone.logits));
  EXPECT_EQ(StateDifference(config, player.pool().states(), sequence, alone.player.pool().states(), alone.sequence), "");
}

Config Smallest(int layers, std::initializer_list<int> attention) {
  Config c = TinyConfig(layers, attention);
  c.vocab = 31, c.dim = 16, c.ffn = 16, c.mamba_heads = 2, c.mamba_head_dim = 8, c.mamba_state = 8, c.mamba_groups = 1;
  c.heads = 1, c.kv_heads = 1, c.head_dim = 8, c.rope_dims = 4;
  return c;
}

TEST(AnySplit, LongTextOfMamba) { LongText(Smallest(2, {}), Full() ? 1'000'000 : 20'000); }

TEST(AnySplit, LongTextWithAttention) { LongText(Smallest(2, {1}), Full() ? 65'536 : 4'096); }

}  // namespace
}  // namespace bamba
