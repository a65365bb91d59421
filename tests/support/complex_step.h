#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/support/bounds.h"
#include "tests/support/device.h"

// Judges a hand-written backward pass by the complex step on the reference device: Im f(x + ih v) / h is the derivative of f along v, exact to rounding.
namespace bamba {

using Tensors = std::vector<Tensor>;

// Element i, in row-major order, of a tensor whose rows may be strided.
template <typename T>
T& Element(const Tensor& t, int64_t i) {
  if (t.contiguous()) return t.as<T>()[i];
  const int64_t row_size = t.size() / t.rows();
  return t.Row<T>(i / row_size)[i % row_size];
}

// A new tensor of the shape of `like`.
inline Tensor ContiguousLike(const Tensor& like, Dtype dtype, Workspace& memory) {
  std::array<int64_t, Tensor::kMaxDims> shape;
  for (int d = 0; d < like.dims(); d++) shape[d] = like.shape(d);
  return {memory.Allocate(static_cast<size_t>(like.size()) * SizeOf(dtype)), dtype, shape.data(), like.dims()};
}

// An argument of a function, and the gradient that a backward pass claims: f64, of one shape.
struct Variable {
  std::string name;
  Tensor value, grad;
};

// How much of a gradient is tried, per variable: directions of random signs, in which every wrong element shows, and single elements (all where fewer).
struct Sampling {
  int directions, elements;
};

// BAMBA_FULL=1: everything; otherwise a sample of seconds.
inline bool FullTests() {
  const char* full = std::getenv("BAMBA_FULL");
  return full && std::string(full) != "0";
}
inline Sampling GradientSampling() { return FullTests() ? Sampling{8, 64} : Sampling{1, 4}; }

// The arguments are complex copies of the variables, contiguous. Called by several threads at once, each with its own Context.
using ComplexFunction = std::function<std::complex<double>(Context& ctx, const Tensors& arguments)>;

// The complex step's derivatives of one function.
class ComplexStep {
 public:
  ComplexStep(const std::vector<Variable>& variables, const ComplexFunction& function) : variables_(variables), function_(function) {}

  // Expects every gradient to agree within kGradientBound of the variable's largest gradient element; of the largest of all, where that is zero to rounding.
  void ExpectGradients(Sampling sampling, uint64_t seed) {
    Draw(sampling, seed);
    ThreadPool pool(std::min(4, AvailableCores()));
    workers_.resize(pool.threads());
    std::vector<double> derivatives(probes_.size());
    pool.For(static_cast<int64_t>(probes_.size()), 1, [&](int64_t begin, int64_t, int thread) { derivatives[begin] = Derivative(probes_[begin], thread); });

    std::vector<double> largest;
    for (const Variable& v : variables_) largest.push_back(Largest(v.grad));
    const double of_all = *std::max_element(largest.begin(), largest.end());
    for (size_t i = 0; i < probes_.size(); i++) {
      const Probe& probe = probes_[i];
      const Variable& v = variables_[probe.variable];
      const double scale = largest[probe.variable] > 1e-12 * of_all ? largest[probe.variable] : of_all;
      double claimed = 0;
      for (int64_t e = 0; e < v.value.size(); e++) claimed += probe.Of(e) * Element<double>(v.grad, e);
      EXPECT_LE(std::abs(claimed - derivatives[i]), kGradientBound * scale)
          << v.name << v.value.ShapeString() << (probe.element < 0 ? ", a direction" : ", element " + std::to_string(probe.element)) << ": backward says "
          << claimed << ", the complex step " << derivatives[i] << ", largest gradient element " << scale;
    }
  }

 private:
  static constexpr double kStep = 0x1p-100;

  struct Probe {
    size_t variable;
    int64_t element;  // −1: signs
    std::vector<int8_t> signs;
    double Of(int64_t e) const { return element < 0 ? signs[e] : e == element; }
  };

  // What a thread evaluates with.
  struct Worker {
    Device device{ref::kTable, Dtype::kC128, 1, size_t{1} << 30};
    Workspace memory{size_t{1} << 30};
    Tensors arguments;
    explicit Worker(const std::vector<Variable>& variables) {
      for (const Variable& v : variables) {
        arguments.push_back(ContiguousLike(v.value, Dtype::kC128, memory));
        for (int64_t i = 0; i < v.value.size(); i++) Element<std::complex<double>>(arguments.back(), i) = Element<double>(v.value, i);
      }
    }
  };

  static double Largest(const Tensor& t) {
    double largest = 0;
    for (int64_t i = 0; i < t.size(); i++) {
      EXPECT_TRUE(std::isfinite(Element<double>(t, i)));
      largest = std::max(largest, std::abs(Element<double>(t, i)));
    }
    return largest;
  }

  void Draw(Sampling sampling, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t v = 0; v < variables_.size(); v++) {
      const int64_t size = variables_[v].value.size();
      for (int i = 0; i < sampling.directions; i++) {
        std::vector<int8_t> signs(size);
        for (int8_t& sign : signs) sign = random() & 1 ? 1 : -1;
        probes_.push_back({v, -1, std::move(signs)});
      }
      std::vector<int64_t> elements(size);
      std::iota(elements.begin(), elements.end(), 0);
      std::shuffle(elements.begin(), elements.end(), random);
      elements.resize(std::min<size_t>(elements.size(), sampling.elements));
      for (int64_t e : elements) probes_.push_back({v, e, {}});
    }
  }

  double Derivative(const Probe& probe, int thread) {
    if (!workers_[thread]) workers_[thread] = std::make_unique<Worker>(variables_);
    Worker& worker = *workers_[thread];
    const Tensor& argument = worker.arguments[probe.variable];
    const auto set_step = [&](double step) {
      for (int64_t e = 0; e < argument.size(); e++) Element<std::complex<double>>(argument, e).imag(step * probe.Of(e));
    };
    set_step(kStep);
    const std::complex<double> value = function_(worker.device.ctx, worker.arguments);
    set_step(0);
    return value.imag() / kStep;
  }

  const std::vector<Variable>& variables_;
  const ComplexFunction& function_;
  std::vector<Probe> probes_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace bamba
