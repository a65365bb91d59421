#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "engine/runtime.h"
#include "engine/state_pool.h"
#include "model/bamba.h"

namespace bamba {

// Whose numbers a state is. The same bits are promised for one program on one kind of machine, so a state goes on only where all of this is equal.
struct SessionIdentity {
  uint64_t build = 0;      // of the program's file
  uint64_t model = 0;      // see ModelHash
  std::string arithmetic;  // SIMD level that the ops run at, as BAMBA_SIMD spells it, or of an accelerator "cuda" or "cuda-invariant"
  bool precise = true;     // see Context::precise
};

// Of the config, and of names, shapes, dtypes and bytes of all tensors: every byte of a model of up to `whole` bytes, and of a larger one's tensors beyond
// 256 KiB the first 64 bytes of each 4 KiB, which tell trainings and quantisations apart, but not every single changed number. The same for any number of
// threads.
uint64_t ModelHash(const Model& model, ThreadPool& threads, size_t whole = size_t{1} << 30);

// Of the running program, of the host's copy of the model, and of the arithmetic. Throws Error where the system doesn't tell the program's file.
SessionIdentity IdentityOf(const Model& model, const Execution& execution, ThreadPool& threads);

// A session's file: a header of fixed size (format version, identity, counts, a hash of what follows, a hash of itself), the tokens (int32), the state's
// image (engine/state_pool.h). Numbers are little-endian, as on every machine that this runs on.
//
// Writes it whole or not at all: readers see the old file until the new one is complete.
void WriteSession(const std::string& path, const SessionIdentity& identity, std::span<const int32_t> tokens, const StatePool& pool,
                  const SequenceState& sequence);

// A mapped and checked file.
class SessionFile {
 public:
  // Throws Error, one line that says what to do, where the file is no session, of another format version, damaged or cut short, not of `identity`, or has
  // counts that don't fit each other, the model or a context of `context` tokens.
  SessionFile(const std::string& path, const SessionIdentity& identity, const Config& config, const StatePool& pool, int64_t context);

  std::span<const int32_t> tokens() const { return tokens_; }
  int64_t position() const { return position_; }  // tokens that the model has read
  int64_t reach() const { return reach_; }
  std::span<const char> image() const { return image_; }

 private:
  MappedFile file_;
  std::span<const int32_t> tokens_;
  int64_t position_ = 0, reach_ = 0;
  std::span<const char> image_;
};

}  // namespace bamba
