#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ops/op_table.h"
#include "tests/support/gpu.h"

// The ops that the tests of ops try with f32 activations in the host's memory: the CPU's, or where BAMBA_TEST_DEVICE=cuda those of the GPU, which each op's
// operands are sent to and fetched from. So one set of tests tries both.
namespace bamba {

inline bool TestsGpu() {
  static const bool tests = [] {
    const char* device = std::getenv("BAMBA_TEST_DEVICE");
    return device && std::string_view(device) == "cuda";
  }();
  return tests;
}

// The operands of one op on the GPU.
class Mirrors {
 public:
  explicit Mirrors(Context& host) {
    gpu().ctx.precise = true, gpu().ctx.layer = host.layer;
    gpu().FreeTemporaries();
  }
  // What the op changed becomes known to the host.
  ~Mirrors() {
    for (const Mirror& m : mirrors_) {
      std::vector<char> now(m.before.size());
      Gpu::Here()->Download(now.data(), m.device, now.size());
      for (size_t i = 0; i < now.size(); i++)
        if (now[i] != m.before[i]) m.host[i] = now[i];
    }
  }

  Context& operator()(Context&) { return gpu().ctx; }
  const Batch& operator()(const Batch& batch) { return ops::Begin(gpu().ctx, batch), batch; }
  Tensor operator()(const Tensor& t) {
    if (!t) return {};
    const bool vector = t.dims() == 1 || (t.dims() == 3 && t.shape(1) == 1 && t.dtype() != Dtype::kF32);
    if (vector && (t.dtype() == Dtype::kBf16 || t.dtype() == Dtype::kF16)) {  // as engine/device_model.h has them
      std::vector<float>& wide = wide_.emplace_back(static_cast<size_t>(t.size()));
      Convert(t.data(), t.dtype(), wide.data(), Dtype::kF32, wide.size());
      return gpu().Upload(Shaped(t, wide.data(), Dtype::kF32));
    }
    // A matrix keeps its stride; what lies between its rows isn't sent.
    const bool strided = t.dims() == 2 && !t.contiguous() && t.rows() > 0;
    const size_t number = SizeOf(t.dtype()), row = strided ? static_cast<size_t>(t.cols()) * number : t.bytes();
    const size_t step = strided ? static_cast<size_t>(t.stride(0)) * number : 0;
    const int64_t rows = strided ? t.rows() : 1;
    char* const device = static_cast<char*>(gpu().ctx.workspace->Allocate(std::max<size_t>(1, step * static_cast<size_t>(rows) + row)));
    for (int64_t i = 0; i < rows && row > 0; i++) {
      const size_t at = static_cast<size_t>(i) * step;
      char* const host = static_cast<char*>(t.data()) + at;
      Gpu::Here()->Upload(device + at, host, row);
      mirrors_.push_back({host, device + at, {host, host + row}});
    }
    if (strided) return Tensor(device, t.dtype(), {t.rows(), t.stride(0)}).Columns({0, t.cols()});
    return Shaped(t, device, t.dtype());
  }
  LinearWeight operator()(const LinearWeight& w) { return {(*this)(w.weight), (*this)(w.bias)}; }
  MambaState operator()(const MambaState& s) { return {(*this)(s.conv), (*this)(s.xbc), (*this)(s.dt), (*this)(s.ssm)}; }
  KvPages operator()(const KvPages& kv) { return {(*this)(kv.k), (*this)(kv.v)}; }
  template <typename T>
  const T& operator()(const T& other) {
    return other;
  }

 private:
  struct Mirror {
    char* host;
    char* device;
    std::vector<char> before;
  };
  static Gpu& gpu() {
    static Gpu the_one(Dtype::kF32);
    return the_one;
  }
  static Tensor Shaped(const Tensor& like, void* data, Dtype dtype) {
    int64_t shape[Tensor::kMaxDims];
    for (int d = 0; d < like.dims(); d++) shape[d] = like.shape(d);
    return Tensor(data, dtype, shape, like.dims());
  }
  std::vector<Mirror> mirrors_;
  std::deque<std::vector<float>> wide_;
};

template <auto OpTable::*kOp, typename Signature>
struct ThroughGpu;
template <auto OpTable::*kOp, typename... Args>
struct ThroughGpu<kOp, void (*)(Args...)> {
  static void Call(Args... args) {
    Mirrors mirrors(First(args...));
    // Braces: operands are sent from left to right.
    std::tuple<decltype(mirrors(args))...> there{mirrors(args)...};
    std::apply([](auto&&... each) { (Gpu::Here()->ops().*kOp)(each...); }, there);
    Gpu::Here()->Wait();
  }
  template <typename... Rest>
  static Context& First(Context& ctx, Rest&&...) {
    return ctx;
  }
};

inline const OpTable& TestedTable() {
  if (!TestsGpu()) return cpu::kTable;
  static const OpTable table = [] {
    CHECK_MSG(Gpu::Here(), "{}", Gpu::Reason());
    OpTable t = cpu::kTable;  // backward ops stay the CPU's
#define BAMBA_THROUGH_GPU(op) t.op = &ThroughGpu<&OpTable::op, decltype(OpTable::op)>::Call;
    BAMBA_FORWARD_OPS(BAMBA_THROUGH_GPU)
#undef BAMBA_THROUGH_GPU
    t.Linears = [](Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y) {
      int64_t out = 0;
      for (const LinearWeight& one : w) {
        TestedTable().Linear(ctx, x, one, y.Columns({out, one.weight.rows()}));
        out += one.weight.rows();
      }
    };
    t.name = "cuda, operands on the host";
    return t;
  }();
  return table;
}

}  // namespace bamba
