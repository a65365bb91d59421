#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace bamba {

const char* Name(BlockKind kind) {
  switch (kind) {
    case BlockKind::kMamba2: return "mamba2";
    case BlockKind::kAttention: return "attention";
    case BlockKind::kSwiGlu: return "swiglu";
  }
  return "?";
}

AttentionShape Config::attention() const { return {heads, kv_heads, head_dim, attention_multiplier.value_or(1 / std::sqrt(static_cast<double>(head_dim)))}; }

int64_t Config::Count(BlockKind kind) const { return std::count(blocks.begin(), blocks.end(), kind); }

int64_t Config::layers() const { return Count(BlockKind::kMamba2) + Count(BlockKind::kAttention); }

namespace {

class Checker {
 public:
  explicit Checker(const std::string& where) : where_(where) {}

  // A size of the model: no dimension of a plausible model passes `most`, and products of a few such sizes stay far from overflow.
  void Size(const char* name, int64_t value, int64_t most = int64_t{1} << 24) const {
    if (value < 1 || value > most) throw Error("{}: {} is {}; expected a number from 1 to {}", where_, name, value, most);
  }
  void Divides(const char* whole_name, int64_t whole, const char* part_name, int64_t part) const {
    if (whole % part != 0) throw Error("{}: {} = {} is not a multiple of {} = {}", where_, whole_name, whole, part_name, part);
  }
  void Finite(const char* name, double value, double least) const {
    if (!std::isfinite(value) || value < least) throw Error("{}: {} is {}; expected a finite number of at least {}", where_, name, value, least);
  }
  template <typename... Args>
  [[noreturn]] void Fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  const std::string& where_;
};

}  // namespace

void Validate(const Config& c, const std::string& where) {
  Checker check(where);
  check.Size("vocab_size", c.vocab);
  check.Size("hidden_size", c.dim);
  if (c.blocks.empty() || c.blocks.size() > 8192) check.Fail("{} sub-blocks; expected 1 to 8192 (num_hidden_layers)", c.blocks.size());
  check.Finite("rms_norm_eps", c.eps, 0);
  if (c.Count(BlockKind::kMamba2) > 0) {
    check.Size("mamba_n_heads", c.mamba_heads, 1 << 16);
    check.Size("mamba_d_head", c.mamba_head_dim, 1 << 14);
    check.Size("mamba_d_state", c.mamba_state, 1 << 14);
    check.Size("mamba_n_groups", c.mamba_groups, 1 << 16);
    check.Size("mamba_d_conv", c.d_conv, 64);
    check.Size("mamba_n_heads · mamba_d_head", c.inner());
    check.Size("2 · mamba_n_groups · mamba_d_state", 2 * c.mamba_groups * c.mamba_state);
    check.Divides("mamba_n_heads", c.mamba_heads, "mamba_n_groups", c.mamba_groups);
    if (!(c.dt_min >= 0) || !(c.dt_max >= c.dt_min)) check.Fail("time_step_limit is [{}, {}]; expected 0 ≤ low ≤ high", c.dt_min, c.dt_max);
  }
  if (c.Count(BlockKind::kAttention) > 0) {
    check.Size("num_attention_heads", c.heads, 1 << 16);
    check.Size("num_key_value_heads", c.kv_heads, 1 << 16);
    check.Size("head_dim", c.head_dim, 1 << 14);
    check.Size("num_attention_heads · head_dim", c.heads * c.head_dim);
    check.Divides("num_attention_heads", c.heads, "num_key_value_heads", c.kv_heads);
    if (c.rope_dims < 0 || c.rope_dims > c.head_dim || c.rope_dims % 2 != 0)
      check.Fail("{} rotated dims of a head of {}; expected an even number up to head_dim", c.rope_dims, c.head_dim);
    if (c.rope_dims > 0) check.Finite("rope_theta", c.rope_theta, 1e-9);
  }
  if (c.Count(BlockKind::kSwiGlu) > 0) check.Size("intermediate_size", c.ffn);
}

}  // namespace bamba
