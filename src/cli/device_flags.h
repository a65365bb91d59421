#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/runtime.h"

namespace bamba::cli {

// --device, --batch-invariant and --threads, of all verbs that run a model.
struct DeviceFlags {
  std::string device = "auto";
  bool invariant = false;
  int threads = 0;  // 0: one for each core

  void AddTo(CLI::App& verb, bool with_threads = true);
  // The accelerator, where one is asked for or at hand. Throws Error where "cuda" can't be had.
  Execution Open(bool precise) const;
};

// The model at `path`, as `execution` runs it: f32 matrices that bf16 holds as well are held as such (engine/narrow.h), which sets execution.precise.
Model LoadToRun(const std::string& path, Execution& execution);

// "cuda NVIDIA H200" or "cpu avx512bf16".
std::string NameOf(const Execution& execution);

}  // namespace bamba::cli
