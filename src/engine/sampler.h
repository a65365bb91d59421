#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ops/batch.h"

namespace bamba {

// How a token is chosen. The steps apply in this order, each on what the one before left: logit_bias, the three penalties, temperature, top_k, top_p, min_p,
// typical_p. Probabilities are those among the tokens that are still there.
struct Sampling {
  // id, and what is added to its logit: −100 to 100, or −∞ for a token that is never chosen.
  std::vector<std::pair<int32_t, double>> logit_bias;

  // Of tokens that the prompt or the output holds: a positive logit is divided by this, any other multiplied (Keskar et al. 2019, "CTRL"). Above 0; 1: none.
  double repetition_penalty = 1;
  // Of tokens that the output holds: subtracted once, and once for each time (as OpenAI's interface has it). −2 to 2; 0: none.
  double presence_penalty = 0, frequency_penalty = 0;

  double temperature = 0;  // 0: always the token of the largest logit; else probabilities are softmax(logits / temperature)
  int64_t top_k = 0;       // keep the k likeliest tokens; 0: all
  double top_p = 1;        // keep the likeliest tokens whose probabilities first sum up to at least this
  double min_p = 0;        // keep tokens of at least this times the likeliest one's probability
  // Keep the tokens whose −log p is nearest to its mean, the entropy, until their probabilities sum up to at least this (Meister et al. 2022, "Locally typical
  // sampling").
  double typical_p = 1;

  uint64_t seed = 0;

  // Throws Error naming the number that makes no sense, and its bounds.
  void Validate() const;
  // Throws Error where logit_bias names an id that a vocabulary of this size lacks, or leaves none of it to choose beside those in `never`.
  void ValidateIds(int64_t vocab, std::span<const int32_t> never = {}) const;
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): random bits as a function of a counter and a key, so that a
// choice depends on the seed and the place in the text only.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Memory that a choice needs while it is made: one for all samplers of a thread. It grows to the vocabulary's size with the first choice and stays.
class SamplerSpace {
 private:
  friend class Sampler;
  struct Candidate {
    int32_t id;
    double x;       // its logit minus the largest, divided by the temperature
    double weight;  // e^x: the probability up to a common factor
  };
  std::vector<float> logits_;
  std::vector<LogitEdit> edits_;
  std::vector<Candidate> candidates_, border_;
  std::vector<double> sums_;
};

// Chooses the tokens of one text. The same settings, tokens so far, step and logits give the same token on every machine. Equal logits rank by id, lowest
// first.
class Sampler {
 public:
  // `prompt` counts for the repetition penalty. Nothing is allocated later where the output has at most `distinct` different tokens.
  explicit Sampler(const Sampling& sampling, std::span<const int32_t> prompt = {}, int64_t distinct = 0);

  // The token for place `step` of the text; it counts as output from then on. Logits must be finite. Tokens in `never` are not chosen: those that end a text
  // before it may end (ids outside the vocabulary there are nothing to choose anyway). At least one token must be left.
  int32_t Sample(std::span<const float> logits, uint64_t step, SamplerSpace& space, std::span<const int32_t> never = {});

  // Whether the choices are of a kind that a GPU makes too (Accelerator::Edit and Choose).
  bool HasChoices() const;
  // The choice that Sample makes at this place of the text, its edits appended to `edits`; or, where it isn't −1, makes once the token that row `awaited` of
  // the batch before chooses has been counted.
  Choice ChoiceAt(uint64_t step, std::span<const int32_t> never, int64_t awaited, std::vector<LogitEdit>& edits) const;
  // Makes it. −1 where a logit isn't finite. `awaited`: that token, where the choice awaits one.
  static int32_t Choose(const Choice& choice, std::span<const LogitEdit> edits, int32_t awaited, std::span<const float> logits, SamplerSpace& space);
  // What was chosen so counts as output from now on.
  void Count(int32_t token);

  const Sampling& sampling() const { return sampling_; }

 private:
  bool counts() const { return sampling_.repetition_penalty != 1 || sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0; }
  LogitEdit& Find(int32_t id);
  static std::span<const float> Adjust(const Choice& choice, std::span<const LogitEdit> edits, int32_t awaited, std::span<const float> logits,
                                       SamplerSpace& space);
  static void Weigh(std::span<SamplerSpace::Candidate> candidates);
  static int32_t Draw(const Choice& choice, std::span<const float> logits, SamplerSpace& space);
  double Uniform(uint64_t step) const;

  Sampling sampling_;
  std::vector<LogitEdit> edits_;  // of biased tokens and, where a penalty asks for them, of those seen; by id
};

}  // namespace bamba
