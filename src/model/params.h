#pragma once

#include <string>
#include <vector>

#include "model/bamba.h"

namespace bamba {

enum class Role : uint8_t { kEmbedding, kMatrix, kNorm, kVector };  // kVector: biases, convolution, dt_bias, A_log, D
const char* Name(Role role);

// One parameter of a model: everything that anybody needs to know of it.
struct Param {
  std::string name;  // in a Hugging Face checkpoint
  Role role;
  int block;       // index of its sub-block; -1 outside of them
  Tensor* tensor;  // the member of Weights
  std::vector<int64_t> shape;

  // In a mamba_ssm checkpoint the parameter is rows [ssm_row, ssm_row + shape[0]) of this tensor; the embedding's and the head's have padding rows after them.
  // Empty where that form has no place for it.
  std::string ssm_name;
  int64_t ssm_row = 0;

  int64_t size() const;
};

// Weights with sub-blocks of the right kinds and no tensors.
Weights EmptyWeights(const Config& config);

// The one table of parameters: every tensor of a model of this config, in the order of the forward pass. Loading, saving, converting, gradients, `info` and
// tests are loops over it. A tied head has no row: TieHead() makes it the embedding.
std::vector<Param> Parameters(const Config& config, Weights& weights);
void TieHead(const Config& config, Weights& weights);
int64_t ParameterCount(const Config& config);
Dtype MainDtype(const Model& model);        // that most bytes of its parameters have
std::string DtypeName(const Model& model);  // the same in words: "bf16", or "f32 held as bf16"

// A model whose parameters are all of one dtype, in one zeroed buffer: for gradients, and for weights that are made rather than loaded.
Model AllocateModel(const Config& config, Dtype dtype);

}  // namespace bamba
