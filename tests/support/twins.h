#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/support/complex_step.h"
#include "tests/support/simd_levels.h"

namespace bamba {

// The same numbers for the CPU and, exactly, for the reference device in double. An op is written once: op(ctx) with x(ctx) for each operand.
struct Twin {
  std::string name;
  Tensor cpu, ref;
  Tensor operator()(const Context& ctx) const { return ctx.dtype == Dtype::kF64 ? ref : cpu; }
  int64_t size() const { return cpu.size(); }
  double operator[](int64_t i) const { return Element<double>(ref, i); }
  double Max() const {  // the largest |element|
    double max = 0;
    for (int64_t i = 0; i < size(); i++) max = std::max(max, std::abs((*this)[i]));
    return max;
  }
};

// Operands of one op with random numbers, activations as columns of wider matrices. Runs the op on both devices, on the CPU at every SIMD level and with 1, 2
// and 3 threads, which must agree in every bit.
class Twins {
 public:
  explicit Twins(uint64_t seed, size_t bytes = size_t{1} << 28) : random_(seed), memory_(bytes) {}

  Twin Input(const std::vector<int64_t>& shape, double low = -2, double high = 2) {
    return Make("input", shape, Dtype::kF32, true, [&] { return Uniform(low, high); });
  }
  Twin Parameter(const std::vector<int64_t>& shape, Dtype dtype = Dtype::kF32, double low = -2, double high = 2) {
    return Make("parameter", shape, dtype, false, [&] { return Uniform(low, high); });
  }
  // Written by the op: NaN before, which an op that adds or forgets would keep.
  Twin Written(const char* name, const std::vector<int64_t>& shape) {
    return Output(Make(name, shape, Dtype::kF32, true, [] { return std::numeric_limits<double>::quiet_NaN(); }));
  }
  // Added to by the op: parameters' gradients, contiguous, and the residual stream's, an activation.
  Twin Added(const char* name, const std::vector<int64_t>& shape, bool activation = false) {
    return Output(Make(name, shape, Dtype::kF32, activation, [&] { return Uniform(-1, 1); }));
  }

  // `check` looks at the results: once at each SIMD level.
  template <typename Op, typename Check>
  void Run(const Op& op, const Check& check) {
    for (const Stored& o : outputs_) o.ref.Restore();
    Device ref(ref::kTable, Dtype::kF64, 1, size_t{1} << 26);
    op(ref.ctx);
    AtEverySimdLevel([&] {
      std::vector<char> bits;
      for (int threads : {1, 2, 3}) {
        for (const Stored& o : outputs_) o.cpu.Restore();
        Device cpu(cpu::kTable, Dtype::kF32, threads, size_t{1} << 26);
        op(cpu.ctx);
        std::vector<char> now;
        for (const Stored& o : outputs_) now.insert(now.end(), o.cpu.data, o.cpu.data + o.cpu.before.size());
        if (threads == 1) bits = now;
        EXPECT_TRUE(now == bits) << "other bits with " << threads << " threads";
      }
      for (const Stored& o : outputs_) ExpectUntouchedPadding(o);
      check();
    });
  }

  std::mt19937_64& random() { return random_; }

 private:
  static constexpr int64_t kLeft = 2, kRight = 3;  // columns beside an activation
  // The memory of an output, with the padding of an activation, and what it held before the op.
  struct Memory {
    char* data;
    std::vector<char> before;
    explicit Memory(const Tensor& t) {
      const int64_t size = static_cast<int64_t>(SizeOf(t.dtype())), bytes = (Padded(t) ? t.rows() * t.stride(0) : t.size()) * size;
      data = static_cast<char*>(t.data()) - (Padded(t) ? kLeft * size : 0);
      before.assign(data, data + bytes);
    }
    void Restore() const { std::copy(before.begin(), before.end(), data); }
  };
  struct Stored {
    Twin twin;
    Memory cpu, ref;
  };

  double Uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }

  template <typename Next>
  Twin Make(const char* name, const std::vector<int64_t>& shape, Dtype dtype, bool activation, const Next& next) {
    Twin twin{name, Take(shape, dtype, activation), Take(shape, Dtype::kF64, activation)};
    for (int64_t i = 0; i < twin.size(); i++) {
      const double value = next();
      char* rounded = static_cast<char*>(twin.cpu.data()) + Offset(twin.cpu, i) * static_cast<int64_t>(SizeOf(dtype));
      Convert(&value, Dtype::kF64, rounded, dtype, 1);
      Convert(rounded, dtype, &Element<double>(twin.ref, i), Dtype::kF64, 1);
    }
    return twin;
  }

  Tensor Take(const std::vector<int64_t>& shape, Dtype dtype, bool activation) {
    if (activation && shape.size() == 2) return memory_.Take(dtype, {shape[0], shape[1] + kLeft + kRight}).Columns({kLeft, shape[1]});
    return ContiguousLike(Tensor(nullptr, dtype, shape.data(), static_cast<int>(shape.size())), dtype, memory_);
  }

  static int64_t Offset(const Tensor& t, int64_t i) {
    const int64_t row_size = t.size() / t.rows();
    return i / row_size * t.stride(0) + i % row_size;
  }

  static bool Padded(const Tensor& t) { return t.dims() == 2 && t.rows() > 0 && t.stride(0) == t.cols() + kLeft + kRight; }

  Twin Output(const Twin& twin) {
    outputs_.push_back({twin, Memory(twin.cpu), Memory(twin.ref)});
    return twin;
  }

  static void ExpectUntouchedPadding(const Stored& o) {
    if (!Padded(o.twin.cpu)) return;
    const int64_t stride = o.twin.cpu.stride(0), columns = o.twin.cpu.cols();
    const float* now = reinterpret_cast<const float*>(o.cpu.data);
    for (int64_t i = 0; i < o.twin.cpu.rows() * stride; i++) {
      const bool inside = i % stride >= kLeft && i % stride < kLeft + columns;
      ASSERT_TRUE(inside || now[i] == 0) << o.twin.name << ": wrote beside its columns";
    }
  }

  std::mt19937_64 random_;
  Workspace memory_;
  std::vector<Stored> outputs_;
};

// |cpu − ref| ≤ bound(i) for every element; NaN and infinity are beyond any bound.
template <typename Bound>
void ExpectNearEach(const Twin& twin, const Bound& bound) {
  for (int64_t i = 0; i < twin.size(); i++) {
    const double got = Element<float>(twin.cpu, i), want = twin[i];
    ASSERT_LE(std::abs(got - want), bound(i)) << twin.name << "[" << i << "] is " << got << ", in double " << want;
  }
}
inline void ExpectNear(const Twin& twin, double bound) {
  ExpectNearEach(twin, [&](int64_t) { return bound; });
}

}  // namespace bamba
