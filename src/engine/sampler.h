#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace bamba {

// How a token is chosen. The steps apply in this order, each on what the one before left: temperature, top_k, top_p, min_p.
struct Sampling {
  double temperature = 0;  // 0: always the token of the largest logit; else probabilities are softmax(logits / temperature)
  int64_t top_k = 0;       // keep the k likeliest tokens; 0: all
  double top_p = 1;        // keep the likeliest tokens whose probabilities first sum up to at least this
  double min_p = 0;        // keep tokens of at least this times the likeliest one's probability
  uint64_t seed = 0;

  // Throws Error naming the number that makes no sense, and its bounds.
  void Validate() const;
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): random bits as a function of a counter and a key, so that a
// choice depends on the seed and the place in the text only.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// e^x for x ≤ 0, 0 below −708; relative error < 2^−51. Made of IEEE additions and multiplications alone: the same bits on every machine, which the
// C library's does not promise.
double Exp(double x);

// Chooses tokens. The same seed, step and logits give the same token on every machine, whatever happened before. Equal logits rank by id, lowest first.
class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling) {}

  // The token for place `step` of the text. Logits must be finite.
  int32_t Sample(std::span<const float> logits, uint64_t step);

 private:
  struct Candidate {
    int32_t id;
    float logit;
    double weight;  // probability up to a common factor; 1 for the likeliest
  };
  void KeepTopK();
  void KeepTopP();
  void SortFirst(size_t n);

  Sampling sampling_;
  std::vector<Candidate> candidates_;  // of the current step; kept for its memory
  size_t sorted_ = 0;                  // so many of the likeliest stand in order at the front
};

}  // namespace bamba
