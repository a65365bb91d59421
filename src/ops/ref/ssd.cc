// The scan as the plain recurrence of ops.h, one token after the other; docs/ssd.md derives the backward and the form in chunks that devices evaluate.
#include <algorithm>

#include "ops/op_table.h"
#include "ops/ref/number.h"

namespace bamba::ref {
namespace {

// The parameters of one head, and where its numbers lie in a row of xbc.
template <typename T>
struct Head {
  T dt_bias, a, d;  // a = −exp(A_log)
  int64_t x, b, c;
};

template <typename T>
std::vector<Head<T>> Heads(const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape) {
  const std::vector<T> biases = Values<T>(dt_bias), logs = Values<T>(a_log), skips = Values<T>(d);
  std::vector<Head<T>> heads;
  for (int64_t h = 0; h < shape.heads; h++) {
    const int64_t b = shape.inner() + h / (shape.heads / shape.groups) * shape.state;
    heads.push_back({biases[h], -std::exp(logs[h]), skips[h], h * shape.head_dim, b, b + shape.groups * shape.state});
  }
  return heads;
}

// The time step that the raw value stands for.
template <typename T>
T TimeStep(T raw, const SsdShape& shape) {
  const T dt = Softplus(raw);
  if (Real(dt) < shape.dt_min) return shape.dt_min;
  if (Real(dt) > shape.dt_max) return shape.dt_max;
  return dt;
}

double TimeStepDerivative(double raw, const SsdShape& shape) {
  const double dt = Softplus(raw);
  return dt < shape.dt_min || dt > shape.dt_max ? 0 : Sigmoid(raw);
}

// S ← a S + dt x ⊗ B
template <typename T>
void Advance(std::vector<T>& s, T decay, T dt, const T* x, const T* b, const SsdShape& shape) {
  for (int64_t p = 0; p < shape.head_dim; p++)
    for (int64_t n = 0; n < shape.state; n++) s[p * shape.state + n] = decay * s[p * shape.state + n] + dt * x[p] * b[n];
}

// A sequence's part of a MambaState; nothing where it keeps no state.
struct Slot {
  Tensor xbc, dt, ssm;
  Slot(const Sequence& s, const MambaState& state) {
    if (s.slot >= 0 && state.ssm) xbc = state.xbc.At(s.slot), dt = state.dt.At(s.slot), ssm = state.ssm.At(s.slot);
    CHECK_MSG(s.position == 0 || ssm, "a sequence continues at {} without an SSM state", s.position);
  }
  template <typename T>
  T* Boundary(int64_t token, int64_t head) const {
    return ssm.At(token / kSsdChunk % ssm.rows()).template Row<T>(head);
  }
};

// One head of one sequence: from the last boundary before its first row, over the tokens that the slot remembers, to its last row.
template <typename T>
void ScanHead(const Tensor& xbc, const Tensor& dt, int64_t h, const Head<T>& head, const SsdShape& shape, const Sequence& s, const Slot& slot,
              const Tensor& y) {
  const int64_t boundary = s.position / kSsdChunk * kSsdChunk, size = shape.head_dim * shape.state;
  std::vector<T> state(size);
  if (boundary > 0 && s.rows > 0) std::copy_n(slot.Boundary<T>(boundary, h), size, state.begin());
  for (int64_t t = boundary; t < s.position + s.rows; t++) {
    const bool past = t < s.position;
    const int64_t row = past ? t % slot.xbc.rows() : s.row + t - s.position;
    const T *in = (past ? slot.xbc : xbc).Row<T>(row), *x = in + head.x, *b = in + head.b, *c = in + head.c;
    const T step = TimeStep((past ? slot.dt : dt).Row<T>(row)[h] + head.dt_bias, shape);
    Advance(state, std::exp(step * head.a), step, x, b, shape);
    if (past) continue;
    for (int64_t p = 0; p < shape.head_dim; p++) {
      T sum = head.d * x[p];
      for (int64_t n = 0; n < shape.state; n++) sum += state[p * shape.state + n] * c[n];
      y.Row<T>(row)[head.x + p] = sum;
    }
    if (slot.ssm && (t + 1) % kSsdChunk == 0) std::copy_n(state.begin(), size, slot.Boundary<T>(t + 1, h));
  }
}

// The backward of one head of one sequence, from the last row to the first. G_t = dL/dS_t gathers y_t's part and what S_{t+1} hands down:
//   G_t = dy_t ⊗ C_t + a_{t+1} G_{t+1}
//   dC_t = S_tᵀ dy_t    dx_t = D dy_t + dt_t G_t B_t    dB_t = dt_t G_tᵀ x_t    dD = Σ dy_t·x_t
//   da_t = ⟨G_t, S_{t−1}⟩    ddt_t = x_tᵀ G_t B_t + da_t a_t A    dA_log = Σ da_t a_t dt_t A
struct HeadBackward {
  const Head<double>& head;
  const SsdShape& shape;
  std::vector<double> grad_state;  // G, handed down
  double ddt_bias = 0, da_log = 0, dd = 0;

  HeadBackward(const Head<double>& h, const SsdShape& s) : head(h), shape(s), grad_state(s.head_dim * s.state) {}

  // `before` and `after`: S_{t−1} and S_t. Adds to the row of dxbc; returns d(raw time step).
  double Step(const double* in, double raw, const double* before, const double* after, const double* dy, double* din) {
    const double dt = TimeStep(raw + head.dt_bias, shape), decay = std::exp(dt * head.a);
    double ddt = 0, ddecay = 0;
    for (int64_t p = 0; p < shape.head_dim; p++) {
      const double x = in[head.x + p];
      dd += dy[p] * x;
      din[head.x + p] += head.d * dy[p];
      for (int64_t n = 0; n < shape.state; n++) {
        const int64_t i = p * shape.state + n;
        const double b = in[head.b + n];
        double& g = grad_state[i];
        g += dy[p] * in[head.c + n];
        din[head.c + n] += after[i] * dy[p];
        din[head.x + p] += dt * g * b;
        din[head.b + n] += dt * g * x;
        ddt += g * x * b;
        ddecay += g * before[i];
        g *= decay;
      }
    }
    const double dexponent = ddecay * decay;  // of dt·A
    da_log += dexponent * dt * head.a;
    const double draw = (ddt + dexponent * head.a) * TimeStepDerivative(raw + head.dt_bias, shape);
    ddt_bias += draw;
    return draw;
  }
};

}  // namespace

void SsdScan(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
             const Batch& batch, const MambaState& state, const Tensor& y) {
  WithNumbers(ctx, [&]<typename T>(T) {
    const std::vector<Head<T>> heads = Heads<T>(dt_bias, a_log, d, shape);
    for (const Sequence& s : batch.sequences) {
      const Slot slot(s, state);
      for (int64_t h = 0; h < shape.heads; h++) ScanHead(xbc, dt, h, heads[h], shape, s, slot, y);
      for (int64_t t = s.position; slot.ssm && t < s.position + s.rows; t++) {
        std::copy_n(xbc.Row<T>(s.row + t - s.position), shape.conv_dim(), slot.xbc.Row<T>(t % slot.xbc.rows()));
        std::copy_n(dt.Row<T>(s.row + t - s.position), shape.heads, slot.dt.Row<T>(t % slot.dt.rows()));
      }
    }
  });
}

void SsdScanBackward(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
                     const Batch& batch, const Tensor& initial, const Tensor& dy, const Tensor& dxbc, const Tensor& ddt, const Tensor& ddt_bias,
                     const Tensor& da_log, const Tensor& dd, const Tensor& dinitial) {
  CheckReal(ctx);
  const std::vector<Head<double>> heads = Heads<double>(dt_bias, a_log, d, shape);
  const int64_t size = shape.head_dim * shape.state;
  for (int64_t t = 0; t < dxbc.rows(); t++) std::fill_n(dxbc.Row<double>(t), shape.conv_dim(), 0.0);
  for (size_t i = 0; i < batch.sequences.size(); i++) {
    const Sequence& s = batch.sequences[i];
    for (int64_t h = 0; h < shape.heads; h++) {
      const Head<double>& head = heads[h];
      std::vector<std::vector<double>> states(s.rows + 1, std::vector<double>(size));  // states[t]: before row t
      if (initial) std::copy_n(initial.At(static_cast<int64_t>(i)).Row<double>(h), size, states[0].begin());
      for (int64_t t = 0; t < s.rows; t++) {
        const double *in = xbc.Row<double>(s.row + t), step = TimeStep(dt.Row<double>(s.row + t)[h] + head.dt_bias, shape);
        states[t + 1] = states[t];
        Advance(states[t + 1], std::exp(step * head.a), step, in + head.x, in + head.b, shape);
      }
      HeadBackward back(head, shape);
      for (int64_t t = s.rows; t-- > 0;) {
        const int64_t row = s.row + t;
        ddt.Row<double>(row)[h] = back.Step(xbc.Row<double>(row), dt.Row<double>(row)[h], states[t].data(), states[t + 1].data(), dy.Row<double>(row) + head.x,
                                            dxbc.Row<double>(row));
      }
      if (ddt_bias) ddt_bias.as<double>()[h] += back.ddt_bias;
      if (da_log) da_log.as<double>()[h] += back.da_log;
      if (dd) dd.as<double>()[h] += back.dd;
      if (dinitial) std::copy_n(back.grad_state.begin(), size, dinitial.At(static_cast<int64_t>(i)).Row<double>(h));
    }
  }
}

}  // namespace bamba::ref
