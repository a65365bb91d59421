#include "ops/ops.h"

#include <cstring>

#include "ops/op_table.h"
#include "ops/temporaries.h"

namespace bamba {

Batch StatelessBatch(std::vector<int32_t> tokens) {
  Batch batch;
  batch.sequences.push_back({.row = 0, .rows = static_cast<int64_t>(tokens.size())});
  batch.tokens = std::move(tokens);
  return batch;
}

namespace {

template <typename Op>
struct Nothing;
template <typename... Args>
struct Nothing<void(Args...)> {
  static void Call(Args...) {}
};

bool IsWeight(Dtype d) { return d == Dtype::kF32 || d == Dtype::kBf16 || d == Dtype::kF16; }

// An activation of `columns` columns (-1: any) and `rows` rows.
void CheckRows(const Context& ctx, const Tensor& t, int64_t rows, int64_t columns) {
  CHECK_MSG(t && t.dims() == 2 && t.rows() == rows && (columns < 0 || t.cols() == columns) && t.dtype() == ctx.dtype, "{} {} where [{}, {}] {} is due",
            Name(t.dtype()), t.ShapeString(), rows, columns, Name(ctx.dtype));
}

// The same of the residual stream or logits.
void CheckWide(const Context& ctx, const Tensor& t, int64_t rows, int64_t columns) {
  CHECK_MSG(t && t.dims() == 2 && t.rows() == rows && (columns < 0 || t.cols() == columns) && t.dtype() == ctx.wide(), "{} {} where [{}, {}] {} is due",
            Name(t.dtype()), t.ShapeString(), rows, columns, Name(ctx.wide()));
}

// Of either.
void CheckEither(const Context& ctx, const Tensor& t, int64_t rows, int64_t columns) {
  t.dtype() == ctx.wide() ? CheckWide(ctx, t, rows, columns) : CheckRows(ctx, t, rows, columns);
}

void CheckWeight(const Context& ctx, const Tensor& t, std::initializer_list<int64_t> shape) {
  Tensor due(t.data(), t.dtype(), shape);
  CHECK_MSG(t && t.contiguous() && (IsWeight(t.dtype()) || t.dtype() == ctx.dtype) && t.SameShape(due), "weight {} {} where {} is due", Name(t.dtype()),
            t.ShapeString(), due.ShapeString());
}

// A gradient that may be absent.
void CheckGrad(const Context& ctx, const Tensor& t, const Tensor& of) {
  CHECK_MSG(!t || (t.dtype() == ctx.dtype && t.SameShape(of)), "gradient {} {} of {}", Name(t.dtype()), t.ShapeString(), of.ShapeString());
}

void CheckBatch(const Batch& batch) {
  int64_t row = 0;
  for (const Sequence& s : batch.sequences) {
    CHECK_MSG(s.row == row && s.rows >= 0 && s.position >= 0 && (s.slot >= 0 || s.position == 0),
              "sequence at row {} (expected {}), {} rows, position {}, slot {}", s.row, row, s.rows, s.position, s.slot);
    row += s.rows;
  }
  CHECK_EQ(row, batch.rows());
}

// A sequence with a slot needs a state to have it in.
void CheckSlots(const Batch& batch, bool state) {
  CheckBatch(batch);
  for (const Sequence& s : batch.sequences)
    CHECK_MSG(s.slot < 0 || s.rows == 0 || state, "a sequence goes on from position {} in slot {}, but there is no state", s.position, s.slot);
}

void CheckStateless(const Batch& batch) {
  CheckBatch(batch);
  for (const Sequence& s : batch.sequences) CHECK_MSG(s.position == 0, "backward through a sequence that continues at {}", s.position);
}

void CheckConv(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const MambaState& state, const Tensor& y) {
  CheckSlots(batch, state.conv || w.shape(2) == 1);
  CheckRows(ctx, x, batch.rows(), w.shape(0));
  CheckRows(ctx, y, batch.rows(), w.shape(0));
  CheckWeight(ctx, w, {x.cols(), 1, w.shape(2)});
  if (bias) CheckWeight(ctx, bias, {x.cols()});
  if (state.conv) CHECK_MSG(state.conv.shape(1) >= w.shape(2) - 1 && state.conv.shape(2) == x.cols(), "conv state {}", state.conv.ShapeString());
}

void CheckScan(const Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
               const Batch& batch, const MambaState& state, const Tensor& y) {
  CheckSlots(batch, static_cast<bool>(state.ssm));
  CheckRows(ctx, xbc, batch.rows(), shape.conv_dim());
  CheckRows(ctx, dt, batch.rows(), shape.heads);
  CheckRows(ctx, y, batch.rows(), shape.inner());
  for (const Tensor* t : {&dt_bias, &a_log, &d}) CheckWeight(ctx, *t, {shape.heads});
  CHECK_MSG(shape.heads % shape.groups == 0, "{} heads in {} groups", shape.heads, shape.groups);
  if (state.ssm) CHECK_MSG(state.xbc.shape(1) % kSsdChunk == 0 && state.xbc.shape(1) > 0, "ring of {}", state.xbc.shape(1));
}

void Observe(const Context& ctx, const char* op, const Tensor& output) {
  if (ctx.observer) ctx.observer(op, ctx.layer, output);
}

}  // namespace

#define BAMBA_NOTHING(op) &Nothing<decltype(ops::op)>::Call,
const OpTable kMeasuringTable = [] {
  OpTable table = {"measuring", BAMBA_OPS(BAMBA_NOTHING)};
  // The ops that take temporaries themselves, on some processors: planned for all, so that a plan doesn't depend on the machine.
  // A GPU's ops share memory of their own.
  table.Linear = [](Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor&) {
    Frame frame(ctx);
    if (!ctx.accelerator && w.weight.dtype() == Dtype::kBf16) RoundedRows(ctx, x.rows(), x.cols());
  };
  table.Linears = [](Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor&) {
    for (const LinearWeight& one : w) kMeasuringTable.Linear(ctx, x, one, {});
  };
  table.SsdScan = [](Context& ctx, const Tensor& xbc, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const SsdShape& shape, const Batch&,
                     const MambaState&, const Tensor&) {
    Frame frame(ctx);
    if (!ctx.accelerator) ScanScores(ctx, xbc.rows(), shape.groups);
  };
  return table;
}();
#undef BAMBA_NOTHING

namespace ops {

void Begin(Context& ctx, const Batch& batch) {
  if (ctx.accelerator && ctx.device != &kMeasuringTable) ctx.accelerator->Begin(batch);
}

void ToHost(const Context& ctx, const Tensor& from, void* to) {
  const auto copy = [&](const Tensor& part, char* host) {
    if (part.bytes() == 0) return;
    ctx.accelerator ? ctx.accelerator->Download(host, part.data(), part.bytes()) : void(std::memcpy(host, part.data(), part.bytes()));
  };
  char* const host = static_cast<char*>(to);
  if (from.contiguous()) return copy(from, host);
  for (int64_t i = 0; i < from.rows(); i++) copy(from.At(i), host + static_cast<size_t>(i) * from.At(i).bytes());
}

void FromHost(const Context& ctx, const void* from, const Tensor& to) {
  const auto copy = [&](const char* host, const Tensor& part) {
    if (part.bytes() == 0) return;
    ctx.accelerator ? ctx.accelerator->Upload(part.data(), host, part.bytes()) : void(std::memcpy(part.data(), host, part.bytes()));
  };
  const char* const host = static_cast<const char*>(from);
  if (to.contiguous()) return copy(host, to);
  for (int64_t i = 0; i < to.rows(); i++) copy(host + static_cast<size_t>(i) * to.At(i).bytes(), to.At(i));
}

void Embed(Context& ctx, const Batch& batch, const Tensor& table, double scale, const Tensor& x) {
  CheckWide(ctx, x, batch.rows(), -1);
  CheckWeight(ctx, table, {table.rows(), x.cols()});
  for (int32_t id : batch.tokens) CHECK_MSG(id < table.rows() && (id >= 0 || batch.chosen), "token {} of a vocabulary of {}", id, table.rows());
  ctx.device->Embed(ctx, batch, table, scale, x);
  Observe(ctx, "Embed", x);
}

void EmbedBackward(Context& ctx, const Batch& batch, const Tensor& dx, double scale, const Tensor& dtable) {
  if (!dtable) return;
  CheckRows(ctx, dx, batch.rows(), dtable.cols());
  CHECK(dtable.dtype() == ctx.dtype);
  for (int32_t id : batch.tokens) CHECK_MSG(id >= 0 && id < dtable.rows(), "token {} of a vocabulary of {}", id, dtable.rows());
  ctx.device->EmbedBackward(ctx, batch, dx, scale, dtable);
}

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  CheckRows(ctx, x, y.rows(), w.weight.cols());
  CheckEither(ctx, y, x.rows(), w.weight.rows());
  CheckWeight(ctx, w.weight, {y.cols(), x.cols()});
  if (w.bias) CheckWeight(ctx, w.bias, {y.cols()});
  ctx.device->Linear(ctx, x, w, y);
  Observe(ctx, "Linear", y);
}

void Linears(Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y) {
  int64_t out = 0;
  for (const LinearWeight& one : w) {
    CheckWeight(ctx, one.weight, {one.weight.rows(), x.cols()});
    if (one.bias) CheckWeight(ctx, one.bias, {one.weight.rows()});
    out += one.weight.rows();
  }
  CheckRows(ctx, x, y.rows(), x.cols());
  CheckEither(ctx, y, x.rows(), out);
  ctx.device->Linears(ctx, x, w, y);
  if (!ctx.observer) return;
  out = 0;
  for (const LinearWeight& one : w) {
    Observe(ctx, "Linear", y.Columns({out, one.weight.rows()}));
    out += one.weight.rows();
  }
}

void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw) {
  CheckRows(ctx, x, dy.rows(), w.weight.cols());
  CheckRows(ctx, dy, x.rows(), w.weight.rows());
  CheckGrad(ctx, dx, x);
  CheckGrad(ctx, dw.weight, w.weight);
  CheckGrad(ctx, dw.bias, w.bias);
  ctx.device->LinearBackward(ctx, x, w, dy, into, dx, dw);
}

void RmsNorm(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& y) {
  CheckWide(ctx, x, y.rows(), y.cols());
  CheckRows(ctx, y, x.rows(), x.cols());
  CheckWeight(ctx, w, {x.cols()});
  ctx.device->RmsNorm(ctx, x, w, eps, y);
  Observe(ctx, "RmsNorm", y);
}

void RmsNormBackward(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& dy, const Tensor& dx, const Tensor& dw) {
  CheckRows(ctx, dy, x.rows(), x.cols());
  CheckRows(ctx, dx, x.rows(), x.cols());
  CheckGrad(ctx, dw, w);
  ctx.device->RmsNormBackward(ctx, x, w, eps, dy, dx, dw);
}

void AddRmsNorm(Context& ctx, const Tensor& x, const Tensor& y, double scale, const Tensor& w, double eps, const Tensor& out, const Tensor& u) {
  for (const Tensor* t : {&x, &out}) CheckWide(ctx, *t, x.rows(), x.cols());
  for (const Tensor* t : {&y, &u}) CheckRows(ctx, *t, x.rows(), x.cols());
  CheckWeight(ctx, w, {x.cols()});
  ctx.device->AddRmsNorm(ctx, x, y, scale, w, eps, out, u);
  Observe(ctx, "AddRmsNorm", u);
  Observe(ctx, "Residual", out);
}

void AddRmsNormBackward(Context& ctx, const Tensor& out, double scale, const Tensor& w, double eps, const Tensor& du, const Tensor& dout, const Tensor& dy,
                        const Tensor& dw) {
  for (const Tensor* t : {&out, &du, &dout, &dy}) CheckRows(ctx, *t, out.rows(), out.cols());
  CheckGrad(ctx, dw, w);
  ctx.device->AddRmsNormBackward(ctx, out, scale, w, eps, du, dout, dy, dw);
}

void CausalConvSilu(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const MambaState& state, const Tensor& y) {
  CheckConv(ctx, x, w, bias, batch, state, y);
  ctx.device->CausalConvSilu(ctx, x, w, bias, batch, state, y);
  Observe(ctx, "CausalConvSilu", y);
}

void CausalConvSiluBackward(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const Tensor& dy, const Tensor& dx,
                            const Tensor& dw, const Tensor& dbias) {
  CheckStateless(batch);
  for (const Tensor* t : {&x, &dy, &dx}) CheckRows(ctx, *t, batch.rows(), w.shape(0));
  CheckGrad(ctx, dw, w);
  CheckGrad(ctx, dbias, bias);
  ctx.device->CausalConvSiluBackward(ctx, x, w, bias, batch, dy, dx, dw, dbias);
}

void SsdScan(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
             const Batch& batch, const MambaState& state, const Tensor& y) {
  CheckScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
  ctx.device->SsdScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
  Observe(ctx, "SsdScan", y);
}

void SsdScanBackward(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
                     const Batch& batch, const Tensor& initial, const Tensor& dy, const Tensor& dxbc, const Tensor& ddt, const Tensor& ddt_bias,
                     const Tensor& da_log, const Tensor& dd, const Tensor& dinitial) {
  CheckBatch(batch);
  for (const Sequence& s : batch.sequences) CHECK_MSG(s.position % kSsdChunk == 0, "backward from position {} within a chunk of {}", s.position, kSsdChunk);
  if (initial)
    CHECK(initial.contiguous() &&
          initial.SameShape(Tensor(initial.data(), ctx.dtype, {std::ssize(batch.sequences), shape.heads, shape.head_dim, shape.state})));
  for (const Tensor* t : {&xbc, &dxbc}) CheckRows(ctx, *t, batch.rows(), shape.conv_dim());
  for (const Tensor* t : {&dt, &ddt}) CheckRows(ctx, *t, batch.rows(), shape.heads);
  CheckRows(ctx, dy, batch.rows(), shape.inner());
  CheckGrad(ctx, ddt_bias, dt_bias);
  CheckGrad(ctx, da_log, a_log);
  CheckGrad(ctx, dd, d);
  if (dinitial) CHECK(initial && dinitial.contiguous() && dinitial.SameShape(initial));
  ctx.device->SsdScanBackward(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, initial, dy, dxbc, ddt, ddt_bias, da_log, dd, dinitial);
}

void ConvScan(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d,
              const SsdShape& shape, const Batch& batch, const MambaState& state, const Tensor& xbc, const Tensor& y) {
  if (!ctx.device->ConvScan || ctx.observer) {
    CausalConvSilu(ctx, x, w, bias, batch, state, xbc);
    return SsdScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
  }
  CheckConv(ctx, x, w, bias, batch, state, xbc);
  CheckScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
  ctx.device->ConvScan(ctx, x, w, bias, dt, dt_bias, a_log, d, shape, batch, state, xbc, y);
}

void GatedRmsNorm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& out) {
  for (const Tensor* t : {&y, &z, &out}) CheckRows(ctx, *t, y.rows(), y.cols());
  CheckWeight(ctx, w, {y.cols()});
  CHECK_EQ(y.cols() % groups, 0);
  ctx.device->GatedRmsNorm(ctx, y, z, w, groups, eps, out);
  Observe(ctx, "GatedRmsNorm", out);
}

void GatedRmsNormBackward(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& dout, const Tensor& dy,
                          const Tensor& dz, const Tensor& dw) {
  for (const Tensor* t : {&y, &z, &dout, &dy, &dz}) CheckRows(ctx, *t, y.rows(), y.cols());
  CheckGrad(ctx, dw, w);
  ctx.device->GatedRmsNormBackward(ctx, y, z, w, groups, eps, dout, dy, dz, dw);
}

void Rope(Context& ctx, const Tensor& x, const RopeShape& shape, const Batch& batch) {
  CheckBatch(batch);
  CheckRows(ctx, x, batch.rows(), shape.heads * shape.head_dim);
  CHECK_MSG(shape.dims % 2 == 0 && shape.dims <= shape.head_dim, "{} of {} dims rotate", shape.dims, shape.head_dim);
  ctx.device->Rope(ctx, x, shape, batch);
  Observe(ctx, "Rope", x);
}

void RopeBackward(Context& ctx, const Tensor& dx, const RopeShape& shape, const Batch& batch) {
  CheckBatch(batch);
  CheckRows(ctx, dx, batch.rows(), shape.heads * shape.head_dim);
  ctx.device->RopeBackward(ctx, dx, shape, batch);
}

void Attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const KvPages& kv,
               const Tensor& y) {
  CheckBatch(batch);
  for (const Tensor* t : {&q, &y}) CheckRows(ctx, *t, batch.rows(), shape.heads * shape.head_dim);
  for (const Tensor* t : {&k, &v}) CheckRows(ctx, *t, batch.rows(), shape.kv_heads * shape.head_dim);
  CHECK_MSG(shape.heads % shape.kv_heads == 0, "{} heads over {} key heads", shape.heads, shape.kv_heads);
  for (const Sequence& s : batch.sequences) CHECK(s.slot < 0 || s.rows == 0 || (kv.k && s.pages));
  ctx.device->Attention(ctx, q, k, v, shape, batch, kv, y);
  Observe(ctx, "Attention", y);
}

void AttentionBackward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const Tensor& y,
                       const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  CheckStateless(batch);
  for (const Tensor* t : {&q, &y, &dy, &dq}) CheckRows(ctx, *t, batch.rows(), shape.heads * shape.head_dim);
  for (const Tensor* t : {&k, &v, &dk, &dv}) CheckRows(ctx, *t, batch.rows(), shape.kv_heads * shape.head_dim);
  ctx.device->AttentionBackward(ctx, q, k, v, shape, batch, y, dy, dq, dk, dv);
}

void SwiGlu(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y) {
  for (const Tensor* t : {&gate, &up, &y}) CheckRows(ctx, *t, gate.rows(), gate.cols());
  ctx.device->SwiGlu(ctx, gate, up, y);
  Observe(ctx, "SwiGlu", y);
}

void SwiGluLinears(Context& ctx, const Tensor& x, const LinearWeight& gate, const LinearWeight& up, const Tensor& gate_up, const Tensor& y) {
  CheckRows(ctx, x, y.rows(), x.cols());
  CheckRows(ctx, gate_up, y.rows(), 2 * y.cols());
  CheckRows(ctx, y, x.rows(), gate.weight.rows());
  for (const LinearWeight* w : {&gate, &up}) {
    CheckWeight(ctx, w->weight, {y.cols(), x.cols()});
    if (w->bias) CheckWeight(ctx, w->bias, {y.cols()});
  }
  if (!ctx.device->SwiGluLinears || ctx.observer) {
    Linears(ctx, x, {gate, up}, gate_up);
    return SwiGlu(ctx, gate_up.Columns({0, y.cols()}), gate_up.Columns({y.cols(), y.cols()}), y);
  }
  ctx.device->SwiGluLinears(ctx, x, gate, up, gate_up, y);
}

void SwiGluBackward(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  for (const Tensor* t : {&gate, &up, &dy, &dgate, &dup}) CheckRows(ctx, *t, gate.rows(), gate.cols());
  ctx.device->SwiGluBackward(ctx, gate, up, dy, dgate, dup);
}

void KeepRows(Context& ctx, std::span<const int64_t> rows, const Tensor& x) {
  CheckEither(ctx, x, x.rows(), x.cols());
  int64_t before = -1;
  for (int64_t row : rows) {
    CHECK_MSG(row > before && row < x.rows(), "row {} after row {} of {}", row, before, x.rows());
    before = row;
  }
  if (std::ssize(rows) < x.rows()) ctx.device->KeepRows(ctx, rows, x);
}

void CrossEntropy(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, const Tensor& nll) {
  CheckWide(ctx, logits, static_cast<int64_t>(labels.size()), -1);
  CHECK_EQ(nll.size(), logits.rows());
  for (int32_t label : labels) CHECK_MSG(label == kIgnoredLabel || (label >= 0 && label < logits.cols()), "label {} of {}", label, logits.cols());
  ctx.device->CrossEntropy(ctx, logits, labels, nll);
}

void CrossEntropyBackward(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, double scale, const Tensor& dlogits) {
  CheckRows(ctx, logits, static_cast<int64_t>(labels.size()), -1);
  CheckRows(ctx, dlogits, logits.rows(), logits.cols());
  ctx.device->CrossEntropyBackward(ctx, logits, labels, scale, dlogits);
}

void Scale(Context& ctx, const Tensor& x, double scale) {
  if (scale != 1) ctx.device->Scale(ctx, x, scale);
}

void Zero(Context& ctx, const Tensor& x) { ctx.device->Zero(ctx, x); }

}  // namespace ops
}  // namespace bamba
