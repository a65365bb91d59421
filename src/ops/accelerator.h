#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/device_memory.h"
#include "base/tensor.h"
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
  virtual std::string name() const = 0;       // "NVIDIA H200"
  virtual int64_t FreeBytes() const = 0;      // that Allocate could still give
  virtual int64_t OwnBytes() const = 0;       // of its memory that ops share for partial sums, batches and the like: taken when it was opened
  virtual double ContextSeconds() const = 0;  // that the driver took to make it ready

  // A mark behind what is queued: WaitFor returns once the device has come to it. Only of the last few marks.
  virtual uint64_t Mark() = 0;
  virtual void WaitFor(uint64_t mark) = 0;

  // Many uploads, as fast as the host can read its memory: several threads and pinned buffers.
  struct Transfer {
    void* to;
    const void* from;
    size_t bytes;
  };
  virtual void UploadAll(std::span<const Transfer> transfers, const std::function<void(int64_t bytes)>& progress) = 0;
  // Numbers (f32, bf16, f16) drawn evenly from [low, high), a function of the seed.
  virtual void FillRandom(const Tensor& tensor, uint64_t seed, float low, float high) = 0;

  // Makes row i's logits (f32) what choices[i] and the edits of the batch want them to be, for ArgMax and Choose. `chosen` (in its memory): the tokens that the
  // batch before chose. What isn't finite stays.
  virtual void Edit(const Tensor& logits, const int32_t* chosen) = 0;
  // tokens[i] (in its memory): the id of the largest of row i's logits (f32), the lowest id among equals; −1 where one isn't finite.
  virtual void ArgMax(const Tensor& logits, int32_t* tokens) = 0;
  // The same, but of row i as choices[i] of the batch says: what engine/sampler.h's Sampler would choose, always.
  virtual void Choose(const Tensor& logits, int32_t* tokens) = 0;

  // parts[i] (in its memory) of each row whose choice asks for log probabilities. Undoes Edit in these.
  virtual void Logprobs(const Tensor& logits, const int32_t* tokens, LogprobParts* parts) = 0;

  // The batch that the following ops are called with: their rows, sequences and pages become known to the device.
  virtual void Begin(const Batch& batch) = 0;
  // Runs `work`, which queues ops, or what it queued when it was first called with this key, in one go. What the ops do may depend on the batch only through
  // its numbers of rows and sequences, which the key must tell, and on the memory that the tensors lie in, which must stay.
  virtual void Replay(uint64_t key, const std::function<void()>& work) = 0;
  virtual void ForgetReplays() = 0;

  virtual double Seconds(const std::function<void()>& work) = 0;  // that the device takes for what `work` queues
  virtual double ReadBandwidth() = 0;                             // bytes a second that a kernel which only reads gets
};

// The CUDA device: opens libbamba_cuda.so, which lies beside the program or where programs' libraries do, and the first GPU that the driver shows. Null where
// there is none, with the reason in a line for the user. Lives until the program ends.
Accelerator* OpenCuda(std::string* reason);

}  // namespace bamba
