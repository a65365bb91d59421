// How evenly texts are written while prompts arrive: mixed_load MODEL [TEXTS [PROMPT [SECONDS]]]
// So many texts (64) are written at once; after a quarter of the time a prompt of PROMPT tokens (4096) arrives each second. Prints the time between a text's
// tokens, with and without prompts: median and 99th percentile.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "io/checkpoint.h"

namespace {

using Clock = std::chrono::steady_clock;

double Percentile(std::vector<double>& seconds, double p) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.empty() ? 0 : seconds[static_cast<size_t>(p * static_cast<double>(seconds.size() - 1))];
}

std::vector<int32_t> Prompt(int64_t tokens, uint64_t seed, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; i++) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    ids.push_back(static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

void Measure(const std::string& path, int32_t texts, int64_t prompt, double seconds) {
  using namespace bamba;
  std::string reason;
  const Execution execution{.threads = AvailableCores(), .precise = false, .accelerator = OpenCuda(&reason)};
  if (!execution.accelerator) fmt::print(stderr, "mixed_load: on the CPU: {}\n", reason);
  const Model model = LoadModel(path);
  constexpr int32_t kPrompts = 8;  // that may be read or wait at a time
  Engine engine(model, nullptr,
                {.name = path, .execution = execution, .context = 4 * prompt, .sequences = texts + kPrompts, .kv_tokens = (texts + kPrompts) * 2 * prompt});
  for (int32_t i = 0; i < texts; i++)
    engine.Submit({.prompt = Prompt(64, static_cast<uint64_t>(i), model.config.vocab), .max_tokens = 2 * prompt - 64, .ignore_eos = true}, {});
  for (int i = 0; i < 60; i++) engine.Step();  // prompts read, steps recorded

  std::vector<double> alone, beside;
  const auto start = Clock::now();
  auto last = start;
  int64_t arrived = 0;
  for (;;) {
    const double now = std::chrono::duration<double>(last - start).count();
    if (now > seconds) break;
    const double since = now - seconds / 4;
    if (since >= static_cast<double>(arrived)) {
      engine.Submit({.prompt = Prompt(prompt, 1000 + static_cast<uint64_t>(arrived), model.config.vocab), .max_tokens = 1, .ignore_eos = true}, {});
      arrived++;
    }
    engine.Step();
    const auto end = Clock::now();
    (arrived > 0 ? beside : alone).push_back(std::chrono::duration<double>(end - last).count());
    last = end;
  }
  const double p99 = Percentile(alone, 0.99), p99_beside = Percentile(beside, 0.99);
  fmt::print("{} texts alone: {:.2f} ms median, {:.2f} ms p99 over {} steps\n", texts, Percentile(alone, 0.5) * 1e3, p99 * 1e3, alone.size());
  fmt::print("with a prompt of {} tokens each second: {:.2f} ms median, {:.2f} ms p99 over {} steps: {:.2f} times\n", prompt, Percentile(beside, 0.5) * 1e3,
             p99_beside * 1e3, beside.size(), p99_beside / p99);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw bamba::UsageError("usage: {} MODEL [TEXTS [PROMPT [SECONDS]]]", argv[0]);
    Measure(argv[1], argc > 2 ? std::atoi(argv[2]) : 64, argc > 3 ? std::atoll(argv[3]) : 4096, argc > 4 ? std::atof(argv[4]) : 12);
  } catch (const std::exception& error) {
    fmt::print(stderr, "mixed_load: {}\n", error.what());
    return 1;
  }
}
