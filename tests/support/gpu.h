#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops/accelerator.h"
#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {

// The GPU of this machine, if it has one: a workspace there and a Context to call ops with. Tests that need one begin with
//   if (!Gpu::Here()) GTEST_SKIP() << Gpu::Reason();
class Gpu {
 public:
  static Accelerator* Here() {
    static Accelerator* const accelerator = OpenCuda(&reason_);
    return accelerator;
  }
  static const std::string& Reason() { return reason_; }
  // Fewer and shorter trials: under compute-sanitizer a kernel takes hundreds of times as long.
  static bool Short() { return std::getenv("BAMBA_SHORT") != nullptr; }

  explicit Gpu(Dtype activations, size_t bytes = size_t{1} << 30) : threads_(1), workspace_(bytes, Here()) {
    ctx.device = &Here()->ops(), ctx.accelerator = Here(), ctx.dtype = activations, ctx.threads = &threads_, ctx.workspace = &workspace_;
    ctx.precise = activations == Dtype::kF32;
  }

  // A contiguous copy there, of the same dtype and shape. `host`'s rows may be strided where it is a matrix.
  Tensor Upload(const Tensor& host) {
    if (!host) return {};
    int64_t shape[Tensor::kMaxDims];
    for (int d = 0; d < host.dims(); d++) shape[d] = host.shape(d);
    Tensor copy(workspace_.Allocate(host.bytes()), host.dtype(), shape, host.dims());
    if (host.contiguous()) {
      if (host.bytes() > 0) Here()->Upload(copy.data(), host.data(), host.bytes());
    } else {
      for (int64_t i = 0; i < host.rows(); i++) Here()->Upload(copy.At(i).data(), host.At(i).data(), host.At(i).bytes());
    }
    return copy;
  }
  // Back into a host tensor of the same dtype and shape; either's rows may be strided.
  static void Download(const Tensor& there, const Tensor& host) {
    CHECK(there.SameShape(host) && there.dtype() == host.dtype());
    if (there.contiguous() && host.contiguous()) {
      if (host.bytes() > 0) Here()->Download(host.data(), there.data(), host.bytes());
    } else {
      for (int64_t i = 0; i < host.rows(); i++) Here()->Download(host.At(i).data(), there.At(i).data(), host.At(i).bytes());
    }
  }
  void FreeTemporaries() { workspace_.ReleaseTo(0); }

  Context ctx;

 private:
  inline static std::string reason_;
  ThreadPool threads_;
  Workspace workspace_;
};

}  // namespace bamba
