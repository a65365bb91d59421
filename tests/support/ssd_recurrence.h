#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/twins.h"

namespace bamba {

// Operands of SsdScanBackward.
struct ScanInputs {
  SsdShape shape;
  Batch batch;
  Twin xbc, dt, dt_bias, a_log, d, initial, dy;  // initial may be absent
};

// The naive backward of the scan: the recurrence forwards, then backwards, one token at a time, in numbers of type T (see ref/ssd.cc for the formulas). In
// float it is what any implementation has to compare with. With `magnitudes` every operand and every term counts by its absolute value: what rounding errors
// are relative to.
template <typename T>
struct ScanRecurrence {
  std::vector<T> dxbc, ddt, ddt_bias, da_log, dd, dinitial;

  ScanRecurrence(const ScanInputs& in, bool magnitudes) : in_(in), magnitudes_(magnitudes) {
    const SsdShape& shape = in.shape;
    dxbc.resize(static_cast<size_t>(in.batch.rows() * shape.conv_dim()));
    ddt.resize(static_cast<size_t>(in.batch.rows() * shape.heads));
    for (auto* grad : {&ddt_bias, &da_log, &dd}) grad->resize(static_cast<size_t>(shape.heads));
    dinitial.resize(in.batch.sequences.size() * static_cast<size_t>(shape.heads * shape.head_dim * shape.state));
    for (size_t i = 0; i < in.batch.sequences.size(); i++)
      for (int64_t h = 0; h < shape.heads; h++) Head(i, h);
  }

 private:
  T Value(const Twin& twin, int64_t i) const {
    const T value = static_cast<T>(twin[i]);
    return magnitudes_ ? std::abs(value) : value;
  }

  void Head(size_t sequence, int64_t h) {
    const SsdShape& shape = in_.shape;
    const Sequence& s = in_.batch.sequences[sequence];
    const int64_t size = shape.head_dim * shape.state, columns = shape.conv_dim(), state0 = (static_cast<int64_t>(sequence) * shape.heads + h) * size;
    const int64_t b0 = shape.inner() + h / (shape.heads / shape.groups) * shape.state, c0 = b0 + shape.groups * shape.state, x0 = h * shape.head_dim;
    const T a = -std::exp(static_cast<T>(in_.a_log[h])), d = Value(in_.d, h);
    std::vector<T> steps, slopes, states(static_cast<size_t>((s.rows + 1) * size)), grad(static_cast<size_t>(size));
    for (int64_t i = 0; in_.initial.cpu && i < size; i++) states[i] = Value(in_.initial, state0 + i);
    for (int64_t t = 0; t < s.rows; t++) {
      const T raw = static_cast<T>(in_.dt[(s.row + t) * shape.heads + h]) + static_cast<T>(in_.dt_bias[h]), e = std::exp(-std::abs(raw));
      const T step = std::max<T>(raw, 0) + std::log1p(e), low = static_cast<T>(shape.dt_min), high = static_cast<T>(shape.dt_max);
      steps.push_back(std::clamp(step, low, high));
      slopes.push_back(step < low || step > high ? 0 : (raw >= 0 ? 1 : e) / (1 + e));
      const T decay = std::exp(a * steps.back());
      for (int64_t i = 0; i < size; i++) {
        const int64_t row = (s.row + t) * columns;
        states[(t + 1) * size + i] =
            decay * states[t * size + i] + steps.back() * Value(in_.xbc, row + x0 + i / shape.state) * Value(in_.xbc, row + b0 + i % shape.state);
      }
    }
    for (int64_t t = s.rows; t-- > 0;) {
      const int64_t row = (s.row + t) * columns, dy0 = (s.row + t) * shape.inner() + x0;
      const T step = steps[t], decay = std::exp(a * step);
      T into_step = 0, into_decay = 0;
      for (int64_t i = 0; i < size; i++) {
        const int64_t p = i / shape.state, n = i % shape.state;
        const T x = Value(in_.xbc, row + x0 + p), b = Value(in_.xbc, row + b0 + n), g = Value(in_.dy, dy0 + p);
        if (n == 0) dd[h] += g * x, dxbc[row + x0 + p] += d * g;
        grad[i] += g * Value(in_.xbc, row + c0 + n);
        dxbc[row + c0 + n] += states[(t + 1) * size + i] * g;
        dxbc[row + x0 + p] += step * grad[i] * b;
        dxbc[row + b0 + n] += step * grad[i] * x;
        into_step += grad[i] * x * b;
        into_decay += grad[i] * states[t * size + i];
        grad[i] *= decay;
      }
      const T into_exponent = into_decay * decay, signed_a = magnitudes_ ? -a : a, into_raw = (into_step + into_exponent * signed_a) * slopes[t];
      da_log[h] += into_exponent * step * signed_a;
      ddt[(s.row + t) * shape.heads + h] = into_raw;
      ddt_bias[h] += into_raw;
    }
    std::copy(grad.begin(), grad.end(), dinitial.begin() + state0);
  }

  const ScanInputs& in_;
  bool magnitudes_;
};

}  // namespace bamba
