#pragma once

#include <cmath>
#include <cstring>
#include <random>

#include "base/dtype.h"
#include "model/params.h"

namespace bamba {

// A model of random weights in which every parameter matters: the distributions of the goldens. Values are drawn in double and rounded to `dtype`, so the same
// seed gives the same model up to rounding in every dtype.
inline Model RandomModel(const Config& config, uint64_t seed, Dtype dtype = Dtype::kF32) {
  Model model = AllocateModel(config, dtype);
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const auto ends_with = [](const std::string& name, const char* end) { return name.size() >= std::strlen(end) && name.ends_with(end); };
  for (const Param& p : Parameters(model.config, model.weights)) {
    for (int64_t i = 0; i < p.size(); i++) {
      double x = normal(random), u = uniform(random), value;
      if (ends_with(p.name, "A_log"))
        value = std::log(1 + 15 * u);
      else if (ends_with(p.name, "dt_bias"))
        value = 4 * u - 5;
      else if (ends_with(p.name, ".D") || p.role == Role::kNorm)
        value = 0.5 + u;
      else if (ends_with(p.name, "conv1d.weight"))
        value = 0.4 * x;
      else if (p.role == Role::kEmbedding && p.block < 0 && ends_with(p.name, "embed_tokens.weight"))
        value = x;
      else if (p.shape.size() == 2)
        value = x * 0.6 / std::sqrt(static_cast<double>(p.shape[1]));
      else
        value = 0.1 * x;
      Convert(&value, Dtype::kF64, static_cast<char*>(p.tensor->data()) + static_cast<size_t>(i) * SizeOf(dtype), dtype, 1);
    }
  }
  return model;
}

// The same numbers in another dtype (rounded where narrower).
inline Model ConvertModel(Model& model, Dtype dtype) {
  Model out = AllocateModel(model.config, dtype);
  auto from = Parameters(model.config, model.weights), to = Parameters(out.config, out.weights);
  for (size_t i = 0; i < from.size(); i++)
    Convert(from[i].tensor->data(), from[i].tensor->dtype(), to[i].tensor->data(), dtype, static_cast<size_t>(from[i].size()));
  return out;
}

// A small config of `layers` layers with attention at `attention`, all sizes odd enough to meet remainders.
inline Config TinyConfig(int layers, std::initializer_list<int> attention) {
  Config c;
  for (int i = 0; i < layers; i++) {
    bool is_attention = false;
    for (int a : attention) is_attention |= a == i;
    c.blocks.push_back(is_attention ? BlockKind::kAttention : BlockKind::kMamba2);
    c.blocks.push_back(BlockKind::kSwiGlu);
  }
  c.vocab = 131, c.dim = 48, c.ffn = 72;
  c.mamba_heads = 6, c.mamba_head_dim = 16, c.mamba_state = 24, c.mamba_groups = 2;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 12, c.rope_dims = 6;
  return c;
}

}  // namespace bamba
