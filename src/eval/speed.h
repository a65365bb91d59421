#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "engine/plan.h"
#include "model/bamba.h"

namespace bamba {

// One measurement: `batch` sequences that have seen `context` tokens each either read `prompt` more, as many at a time as an engine does, or write `generate`
// more, one after the other. The other of the two is 0.
struct SpeedTest {
  int64_t batch = 1, context = 0, prompt = 0, generate = 0;
  Execution execution{.precise = false};
  int64_t tokens() const { return batch * (prompt + generate); }
};

// What a machine or GPU can do, per second: bytes read; operations, two for each product of the arithmetic that the matrices are multiplied with.
struct MachineRates {
  double bytes = 0, operations = 0;
};

// The least seconds that a test takes on such a machine: a call of the model takes as long as its reading or its arithmetic, whichever is longer.
// To read are each matrix once (of the embedding the tokens' rows), and of each sequence the state at the last chunk boundary, in f32, the inputs since, and
// keys and values. To compute are the products with the matrices; what else there is counts as free.
double LimitSeconds(const Model& model, const SpeedTest& test, MachineRates rates);

// Memory that MeasureSpeed takes, the model's included.
MemoryPlan PlanSpeed(const Model& model, const SpeedTest& test);

struct SpeedResult {
  MachineRates rates;           // of this machine, measured just before and in between
  std::vector<double> seconds;  // of each repetition, in order
};

// Runs a test `repetitions` times after a warm-up: the model alone, forward pass and logits, on random tokens; no sampling, no text. A context is not read but
// made up, random numbers for the state, since only the position decides what a step costs. Between steps `proceed` is told the tokens done, of
// tokens() · repetitions; where it answers false the result is none.
//
// `model` lies where it is executed. On an accelerator the text's tokens are chosen there, and the time is what passes on the host until it knows them.
std::optional<SpeedResult> MeasureSpeed(const Model& model, const SpeedTest& test, int repetitions, const std::function<bool(int64_t done)>& proceed);

}  // namespace bamba
