#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/device_memory.h"
#include "ops/batch.h"

namespace bamba {

struct OpTable;

// A GPU: memory of its own, and a queue of work. Ops whose Context names it (ops/context.h) are queued and return; their tensors lie in its memory. One thread
// calls it.
//
// Of a model there, matrices and the embedding have their dtype as on the host, vectors (norms, biases, convolution, A_log …) are f32.
class Accelerator : public DeviceMemory {
 public:
  virtual const OpTable& ops() const = 0;
  virtual std::string name() const = 0;     // "NVIDIA H200"
  virtual int64_t FreeBytes() const = 0;    // that Allocate could still give
  virtual int64_t OwnBytes() const = 0;     // of its memory that ops share for partial sums, batches and the like: taken when it was opened
  virtual double ContextSeconds() const = 0;  // that the driver took to make it ready

  // The batch that the following ops are called with: their rows, sequences and pages become known to the device.
  virtual void Begin(const Batch& batch) = 0;
  // Runs `work`, which queues ops, or what it queued when it was first called with this key, in one go. What the ops do may depend on the batch only through
  // its numbers of rows and sequences, which the key must tell, and on the memory that the tensors lie in, which must stay.
  virtual void Replay(uint64_t key, const std::function<void()>& work) = 0;
  virtual void ForgetReplays() = 0;

  virtual void Wait() = 0;                                          // for all that is queued
  virtual double Seconds(const std::function<void()>& work) = 0;  // that the device takes for what `work` queues
};

// The CUDA device: opens libbamba_cuda.so, which lies beside the program or where programs' libraries do, and the first GPU that the driver shows. Null where
// there is none, with the reason in a line for the user. Lives until the program ends.
Accelerator* OpenCuda(std::string* reason);

}  // namespace bamba
