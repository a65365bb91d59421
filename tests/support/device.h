#pragma once

#include "ops/context.h"
#include "ops/op_table.h"

namespace bamba {

// A device to run ops on in tests: its own threads and a workspace that is large and lazily used.
struct Device {
  ThreadPool threads;
  Workspace workspace;
  Context ctx;

  Device(const OpTable& table, Dtype dtype, int thread_count = 1, size_t bytes = size_t{8} << 30) : threads(thread_count), workspace(bytes) {
    ctx.device = &table, ctx.dtype = dtype, ctx.threads = &threads, ctx.workspace = &workspace;
  }
};

}  // namespace bamba
