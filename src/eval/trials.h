#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/runtime.h"
#include "model/bamba.h"
#include "ops/op_table.h"

namespace bamba {

struct TrialOptions {
  int64_t trials = 0;
  uint64_t seed = 0;                // trial i is drawn from seed + i alone, so that any one can be run by itself
  Execution execution;              // trials use 1, 2, 3 and its number of threads, and on the CPU both kinds of precision
  const OpTable* device = nullptr;  // instead of the CPU's own, in tests
  std::string name;                 // of the model in errors
};

struct TrialReport {
  int64_t trials = 0, failed = 0;
  int64_t rows = 0, states = 0;  // compared: logits of a token, state of a sequence
  int64_t batches = 0, forks = 0, snapshots = 0, roll_backs = 0, files = 0;
  int64_t differing_bits = 0;
  std::string first;  // what differed first; empty where nothing did
};

// Proves that the engine's parts give the same bits whatever happens to a sequence. A trial draws some sequences of random tokens and computes logits and state
// of each alone, in one call, on one thread, with precise arithmetic or without. Then it plays the same tokens in random batches with each other and with
// strangers, on random numbers of threads, and in between it forks sequences, takes and restores snapshots (into other slots, and pools with and without
// roll-back), feeds wrong tokens and rolls them back, rolls back right ones and feeds them again, and goes through session files. Every row's logits and the
// state at the end must be the same bits. `progress` hears of each trial's end. Throws Error where the memory is too small.
TrialReport RunTrials(const Model& model, const TrialOptions& options, const std::function<void(const TrialReport&)>& progress);

}  // namespace bamba
