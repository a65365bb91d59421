#pragma once

#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/plan.h"
#include "engine/runtime.h"
#include "engine/state_pool.h"
#include "model/bamba.h"
#include "model/config.h"

namespace bamba {

// The next tokens of a sequence.
struct Part {
  SequenceState* sequence;
  std::span<const int32_t> tokens;
};

// A model and a pool of state, run one batch at a time. Batches have at most `most_rows` rows.
class Player {
 public:
  Player(const Model& model, PoolSize size, int threads, int64_t most_rows)
      : model_(model), pool_(model.config, size), runtime_(model, {.threads = threads}, MeasureWorkspace([&](Context& ctx) {
                                                             States none;
                                                             std::vector<int32_t> tokens(static_cast<size_t>(most_rows));
                                                             Tensor hidden = ctx.Temp({most_rows, model.config.dim});
                                                             Forward(ctx, model.config, model.weights, StatelessBatch(tokens), none, hidden);
                                                           })) {}

  StatePool& pool() { return pool_; }
  SequenceState Begin() { return pool_.Allocate().value(); }

  // The logits of each part's last `scored` rows (of all where there are fewer), row after row.
  std::vector<std::vector<float>> Play(const std::vector<Part>& parts, int64_t scored) {
    Batch batch;
    for (const Part& part : parts) {
      const auto rows = static_cast<int64_t>(part.tokens.size());
      CHECK(pool_.Grow(*part.sequence, rows));
      batch.sequences.push_back(StatePool::Entry(*part.sequence, batch.rows(), rows));
      batch.tokens.insert(batch.tokens.end(), part.tokens.begin(), part.tokens.end());
    }
    Context& ctx = runtime_.context();
    Frame frame(ctx);
    Tensor hidden = ctx.Temp({batch.rows(), model_.config.dim});
    Forward(ctx, model_.config, model_.weights, batch, pool_.states(), hidden);
    std::vector<std::vector<float>> logits;
    for (size_t i = 0; i < parts.size(); i++) {
      const Sequence& s = batch.sequences[i];
      StatePool::Advance(*parts[i].sequence, s.rows);
      const int64_t rows = std::min(scored, s.rows);
      std::vector<float>& out = logits.emplace_back(static_cast<size_t>(rows * model_.config.vocab));
      if (rows > 0)
        Logits(ctx, model_.config, model_.weights, hidden.Rows(s.row + s.rows - rows, rows), Tensor(out.data(), Dtype::kF32, {rows, model_.config.vocab}));
    }
    return logits;
  }

 private:
  const Model& model_;
  StatePool pool_;
  Runtime runtime_;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Compares what two sequences' state means, entry by entry and bit by bit: the boundary state, the inputs since, the convolution's last inputs, keys and
// values. Says what differs first; empty where nothing does. See ops/batch.h for the layout.
inline std::string StateDifference(const Config& c, const States& a, const SequenceState& sa, const States& b, const SequenceState& sb) {
  if (sa.position != sb.position) return "position";
  const int64_t end = sa.position, boundary = end - end % kSsdChunk;
  const auto same = [](const Tensor& x, const Tensor& y) { return x.contiguous() && y.contiguous() && std::memcmp(x.data(), y.data(), x.bytes()) == 0; };
  const auto same_ring = [&](const Tensor& x, const Tensor& y, int64_t token) {
    return same(x.At(sa.slot).At(token % x.shape(1)), y.At(sb.slot).At(token % y.shape(1)));
  };
  for (size_t i = 0; i < c.blocks.size(); i++) {
    const std::string block = " of sub-block " + std::to_string(i);
    if (c.blocks[i] == BlockKind::kMamba2) {
      const MambaState &x = a.mamba[i], &y = b.mamba[i];
      for (int64_t t = std::max<int64_t>(0, end - (c.d_conv - 1)); t < end; t++)
        if (!same_ring(x.conv, y.conv, t)) return "conv input " + std::to_string(t) + block;
      for (int64_t t = boundary; t < end; t++)
        if (!same_ring(x.xbc, y.xbc, t) || !same_ring(x.dt, y.dt, t)) return "scan input " + std::to_string(t) + block;
      const auto entry = [&](const Tensor& s, int32_t slot) { return s.At(slot).At(boundary / kSsdChunk % s.shape(1)); };
      if (boundary > 0 && !same(entry(x.ssm, sa.slot), entry(y.ssm, sb.slot))) return "boundary state" + block;
    } else if (c.blocks[i] == BlockKind::kAttention) {
      const auto entry = [](const Tensor& s, const SequenceState& q, int64_t t) { return s.At(q.pages[static_cast<size_t>(t / kKvBlock)]).At(t % kKvBlock); };
      for (int64_t t = 0; t < end; t++)
        if (!same(entry(a.kv[i].k, sa, t), entry(b.kv[i].k, sb, t)) || !same(entry(a.kv[i].v, sa, t), entry(b.kv[i].v, sb, t)))
          return "key or value " + std::to_string(t) + block;
    }
  }
  return {};
}

using Random = std::mt19937_64;

// From low to high, both included.
inline int64_t Pick(Random& random, int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); }

inline std::vector<int32_t> RandomTokens(Random& random, int64_t n, const Config& c) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t& id : tokens) id = static_cast<int32_t>(Pick(random, 0, c.vocab - 1));
  return tokens;
}

// Any small model: only Mamba-2, only attention or both, and every size that may be odd.
inline Config RandomConfig(Random& random) {
  Config c;
  const int64_t kind = Pick(random, 0, 3);  // 0: Mamba-2 alone, 1: attention alone
  for (int64_t layers = Pick(random, 1, 4); layers > 0; layers--) {
    const bool attention = kind == 1 || (kind > 1 && random() % 2);
    c.blocks.push_back(attention ? BlockKind::kAttention : BlockKind::kMamba2);
    c.blocks.push_back(BlockKind::kSwiGlu);
  }
  c.vocab = Pick(random, 2, 70), c.dim = Pick(random, 1, 40), c.ffn = Pick(random, 1, 50);
  c.tied = random() % 3 == 0;
  c.mamba_groups = Pick(random, 1, 3), c.mamba_heads = c.mamba_groups * Pick(random, 1, 3);
  c.mamba_head_dim = Pick(random, 1, 20), c.mamba_state = Pick(random, 1, 24), c.d_conv = Pick(random, 1, 6);
  c.conv_bias = random() % 2, c.mamba_bias = random() % 2, c.mlp_bias = random() % 2, c.attention_bias = random() % 2;
  c.kv_heads = Pick(random, 1, 3), c.heads = c.kv_heads * Pick(random, 1, 3), c.head_dim = Pick(random, 2, 20),
  c.rope_dims = 2 * Pick(random, 1, c.head_dim / 2);
  c.embedding_multiplier = random() % 2 ? 1 : 1.5, c.residual_multiplier = random() % 2 ? 1 : 0.75, c.logits_multiplier = random() % 2 ? 1 : 0.5;
  return c;
}

}  // namespace bamba
