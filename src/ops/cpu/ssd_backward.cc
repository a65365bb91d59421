// Backward of the state space scan in chunks of kSsdChunk tokens, head by head; docs/ssd.md derives it. In a chunk that starts from the state S, with
// a_u = −dt_u exp(A_log), decays W_ts = exp(Σ_{s<u≤t} a_u) for s ≤ t (else 0), from_t = exp(Σ_{u≤t} a_u), to_s = exp(Σ_{u>s} a_u), end = exp(Σ a_u),
// G_ts = C_t·B_s and Z the gradient of the state at the chunk's end:
//   E_ts = dy_t·x_s     V_t = Sᵀ dy_t     U_s = Zᵀ x_s
//   dx_s = dt_s (Σ_t W_ts G_ts dy_t + to_s Z B_s) + D dy_s          dD = Σ_t E_tt
//   dB_s = dt_s (to_s U_s + Σ_t W_ts E_ts C_t)                      dC_t = from_t V_t + Σ_s W_ts E_ts dt_s B_s
//   da_u = Σ_{s<u≤t} W_ts G_ts E_ts dt_s + Σ_{t≥u} from_t C_t·V_t + Σ_{s<u} dt_s to_s B_s·U_s + end ⟨Z, S⟩
//   ddt_s = Σ_t W_ts G_ts E_ts + to_s B_s·U_s − exp(A_log) da_s     dA_log = Σ_u a_u da_u
//   gradient of S = end Z + Σ_t from_t dy_t ⊗ C_t
// Every exponent is a sum of a's, never a difference of sums: after a huge time step, differences would keep no digit of the small ones behind it.
#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ssd_backward.cc"
#include "hwy/foreach_target.h"
#include "ops/cpu/parameter_gradients.h"
#include "ops/cpu/small_matmul-inl.h"
#include "ops/cpu/ssd_backward.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {

// dt [n] after bias, softplus and clamp, and its derivative by the raw value: 0 outside of the clamp.
void SsdSteps(const float* raw, float bias, const SsdShape& shape, float* step, float* slope, int64_t n) {
  const Vec low = Set(shape.dt_min), high = Set(shape.dt_max);
  ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
    const Vec x = hn::Add(lanes.Load(raw + i), Set(bias)), zero = hn::Zero(F32());
    const Vec dt = hn::Add(hn::Max(x, zero), hn::Log1p(F32(), Exp(hn::Neg(hn::Abs(x)))));
    lanes.Store(hn::Min(hn::Max(dt, low), high), step + i);
    lanes.Store(hn::IfThenElseZero(hn::And(hn::Ge(dt, low), hn::Le(dt, high)), Logistic(x).at), slope + i);
  });
}

// What the heads of a group share: bt [state, kSsdChunk] = Bᵀ, and G [q, kSsdChunk].
void SsdShare(const SsdChunk& chunk, int64_t state, float* bt, float* g) {
  std::fill(bt, bt + state * kSsdChunk, 0.0f);
  std::fill(g, g + chunk.rows * kSsdChunk, 0.0f);
  Transpose(chunk.rows, state, chunk.b, chunk.stride, bt, kSsdChunk);
  AddMatMul(chunk.rows, kSsdChunk, state, {chunk.c, chunk.stride}, bt, kSsdChunk, g, kSsdChunk);
}

// S [head_dim, state] → the state at the chunk's end. scratch [kSsdChunk · head_dim].
void SsdAdvance(const SsdChunk& chunk, float a, int64_t head_dim, int64_t state, float* s, float* scratch) {
  float sum = 0;
  for (int64_t t = chunk.rows; t-- > 0;) {
    ScaleRow(std::exp(sum) * chunk.step[t], chunk.x + t * chunk.stride, scratch + t * head_dim, head_dim);
    sum += a * chunk.step[t];
  }
  ScaleRow(std::exp(sum), s, s, head_dim * state);
  AddMatMul(head_dim, state, chunk.rows, {scratch, 1, head_dim}, chunk.b, chunk.stride, s, state);
}

// The decays of a chunk: w [q, kSsdChunk], from [q], to [q].
void Decays(const SsdChunk& chunk, float a, float* w, float* from, float* to) {
  float exponents[kSsdChunk] = {}, sum = 0;
  for (int64_t t = 0; t < chunk.rows; t++) {
    const float exponent = a * chunk.step[t];
    from[t] = sum += exponent;
    for (int64_t s = 0; s < t; s++) exponents[s] += exponent;
    float* row = w + t * kSsdChunk;
    std::fill(row, row + kSsdChunk, 0.0f);
    ForLanes(t + 1, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(Exp(lanes.Load(exponents + i)), row + i); });
  }
  ForLanes(chunk.rows, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(Exp(lanes.Load(from + i)), from + i); });
  std::copy_n(w + (chunk.rows - 1) * kSsdChunk, chunk.rows, to);
}

// da [q] for the part of pairs s < u ≤ t, and into_step[s] = Σ_t pairs_ts, from pairs_ts = W_ts G_ts E_ts.
void SumPairs(const SsdChunk& chunk, const float* pairs, float* da, float* into_step) {
  std::fill(into_step, into_step + chunk.rows, 0.0f);
  for (int64_t u = chunk.rows; u-- > 0;) {
    for (int64_t s = 0; s <= u; s++) into_step[s] += pairs[u * kSsdChunk + s];
    float crossing = 0;
    for (int64_t s = 0; s < u; s++) crossing += into_step[s] * chunk.step[s];
    da[u] = crossing;
  }
}

// One chunk of one head. s [head_dim, state]: the state at its start; z: in, the gradient of the state at its end, out, of that at its start.
void SsdChunkBackward(const SsdChunk& chunk, const SsdChunkGrad& out, const SsdHead& head, const float* s, float* z, SsdScratch& scratch) {
  const int64_t q = chunk.rows, dim = head.head_dim, state = head.state, ld = chunk.stride;
  float w[kSsdChunk * kSsdChunk], e[kSsdChunk * kSsdChunk] = {}, from[kSsdChunk], to[kSsdChunk], da[kSsdChunk], ddt[kSsdChunk], scan[kSsdChunk],
                                                carry[kSsdChunk];
  Decays(chunk, head.a, w, from, to);
  const float end = from[q - 1];

  float *xt = scratch.xt.data(), *zb = scratch.zb.data(), *v = scratch.v.data(), *u = scratch.u.data(), *scaled = scratch.scaled.data();
  std::fill(xt, xt + dim * kSsdChunk, 0.0f);
  Transpose(q, dim, chunk.x, ld, xt, kSsdChunk);
  AddMatMul(q, kSsdChunk, dim, {chunk.dy, chunk.dy_stride}, xt, kSsdChunk, e, kSsdChunk);
  for (int64_t t = 0; t < q; t++) head.sums->d += e[t * kSsdChunk + t];

  // e becomes K_ts = W_ts E_ts dt_s and w becomes J_ts = W_ts G_ts dt_s, once their product by pairs is summed up.
  float pairs[kSsdChunk * kSsdChunk];
  for (int64_t i = 0; i < q * kSsdChunk; i++) pairs[i] = w[i] * chunk.g[i] * e[i];
  SumPairs(chunk, pairs, da, ddt);
  for (int64_t t = 0; t < q; t++) {
    for (int64_t i = 0; i <= t; i++) {
      const float decayed = w[t * kSsdChunk + i] * chunk.step[i];
      e[t * kSsdChunk + i] *= decayed;
      w[t * kSsdChunk + i] = chunk.g[t * kSsdChunk + i] * decayed;
    }
    for (int64_t i = t + 1; i < q; i++) e[t * kSsdChunk + i] = 0;
  }

  std::fill(zb, zb + dim * kSsdChunk, 0.0f);
  AddMatMul(dim, kSsdChunk, state, {z, state}, chunk.bt, kSsdChunk, zb, kSsdChunk);
  for (int64_t t = 0; t < q; t++) {
    float* dx = out.x + t * out.x_stride;
    const float carried = to[t] * chunk.step[t];
    for (int64_t p = 0; p < dim; p++) dx[p] = head.d * chunk.dy[t * chunk.dy_stride + p] + carried * zb[p * kSsdChunk + t];
  }
  AddMatMul(q, dim, q, Matrix{w, kSsdChunk}.Transposed(), chunk.dy, chunk.dy_stride, out.x, out.x_stride);

  std::fill(v, v + q * state, 0.0f);
  std::fill(u, u + q * state, 0.0f);
  AddMatMul(q, state, dim, {chunk.dy, chunk.dy_stride}, s, state, v, state);
  AddMatMul(q, state, dim, {chunk.x, ld}, z, state, u, state);
  for (int64_t t = 0; t < q; t++) {
    scan[t] = from[t] * Dot(chunk.c + t * ld, v + t * state, state);
    carry[t] = to[t] * Dot(chunk.b + t * ld, u + t * state, state);
    ScaleRow(from[t], v + t * state, out.c + t * state, state);
    ScaleRow(to[t] * chunk.step[t], u + t * state, out.b + t * state, state);
  }
  AddMatMul(q, state, q, {e, kSsdChunk}, chunk.b, ld, out.c, state);
  AddMatMul(q, state, q, Matrix{e, kSsdChunk}.Transposed(), chunk.c, ld, out.b, state);

  const float whole = end * Dot(z, s, dim * state);
  float before = 0, after = 0;
  for (int64_t t = 0; t < q; t++) da[t] += whole + before, before += carry[t] * chunk.step[t];
  for (int64_t t = q; t-- > 0;) {
    after += scan[t];
    da[t] += after;
    const float draw = (ddt[t] + carry[t] + head.a * da[t]) * chunk.slope[t];
    out.dt[t * out.dt_stride] = draw;
    head.sums->dt_bias += draw;
    head.sums->a_log += static_cast<double>(head.a * chunk.step[t]) * da[t];
    ScaleRow(from[t], chunk.dy + t * chunk.dy_stride, scaled + t * dim, dim);
  }
  ScaleRow(end, z, z, dim * state);
  AddMatMul(dim, state, q, {scaled, 1, dim}, chunk.c, ld, z, state);
}

}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {
namespace {

HWY_EXPORT(SsdSteps);
HWY_EXPORT(SsdShare);
HWY_EXPORT(SsdAdvance);
HWY_EXPORT(SsdChunkBackward);

// The operands of SsdScanBackward, and its loops over sequences, heads and chunks.
struct ScanBackward {
  const SsdShape& shape;
  const Batch& batch;
  const Tensor &xbc, &dt, &initial, &dy, &dxbc, &ddt, &dinitial;
  std::vector<float> dt_bias, a_log, d;
  std::vector<int64_t> first_chunk;  // of each sequence
  std::vector<float> bt, g;          // of each chunk and group: see SsdChunk
  std::vector<float> db, dc;         // [heads at once, T, state] each head's share
  std::vector<SsdHeadSums> sums;     // [sequences, heads]

  int64_t state_size() const { return shape.head_dim * shape.state; }
  int64_t group(int64_t head) const { return head / (shape.heads / shape.groups); }

  SsdChunk Chunk(size_t sequence, int64_t chunk, int64_t head, const SsdScratch& scratch) const;
  void Share(ThreadPool& threads);
  void Head(size_t sequence, int64_t head, int64_t slot, SsdScratch& scratch);
  void AddShares(ThreadPool& threads, int64_t first_head, int64_t heads) const;
};

SsdChunk ScanBackward::Chunk(size_t sequence, int64_t chunk, int64_t head, const SsdScratch& scratch) const {
  const Sequence& s = batch.sequences[sequence];
  const int64_t begin = chunk * kSsdChunk, shared = (first_chunk[sequence] + chunk) * shape.groups + group(head);
  const float *x = xbc.Row<float>(s.row + begin), *b = x + shape.inner() + group(head) * shape.state;
  return {.rows = std::min(kSsdChunk, s.rows - begin),
          .x = x + head * shape.head_dim,
          .b = b,
          .c = b + shape.groups * shape.state,
          .stride = xbc.stride(0),
          .dy = dy.Row<float>(s.row + begin) + head * shape.head_dim,
          .dy_stride = dy.stride(0),
          .step = scratch.step.data() + begin,
          .slope = scratch.slope.data() + begin,
          .bt = bt.data() + shared * shape.state * kSsdChunk,
          .g = g.data() + shared * kSsdChunk * kSsdChunk};
}

void ScanBackward::Share(ThreadPool& threads) {
  int64_t chunks = 0;
  for (const Sequence& s : batch.sequences) first_chunk.push_back(chunks), chunks += (s.rows + kSsdChunk - 1) / kSsdChunk;
  bt.resize(static_cast<size_t>(chunks * shape.groups * shape.state * kSsdChunk));
  g.resize(static_cast<size_t>(chunks * shape.groups * kSsdChunk * kSsdChunk));
  const auto share = HWY_DYNAMIC_DISPATCH(SsdShare);
  for (size_t i = 0; i < batch.sequences.size(); i++) {
    const int64_t n = (batch.sequences[i].rows + kSsdChunk - 1) / kSsdChunk;
    threads.For(n * shape.groups, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t j = begin; j < end; j++) {
        const int64_t chunk = j / shape.groups, part = j % shape.groups, shared = first_chunk[i] * shape.groups + j;
        const SsdChunk first_head = Chunk(i, chunk, part * (shape.heads / shape.groups), {0, 0});
        share(first_head, shape.state, bt.data() + shared * shape.state * kSsdChunk, g.data() + shared * kSsdChunk * kSsdChunk);
      }
    });
  }
}

// States exist at every `segment`-th chunk, and within one segment at a time: 2√chunks states of memory for a second forward over all but the last.
void ScanBackward::Head(size_t sequence, int64_t head, int64_t slot, SsdScratch& scratch) {
  const Sequence& s = batch.sequences[sequence];
  const int64_t size = state_size(), chunks = (s.rows + kSsdChunk - 1) / kSsdChunk;
  const int64_t segment = std::max<int64_t>(1, std::llround(std::ceil(std::sqrt(static_cast<double>(chunks))))), segments = (chunks + segment - 1) / segment;
  const SsdHead numbers = {shape.head_dim, shape.state, -std::exp(a_log[static_cast<size_t>(head)]), d[static_cast<size_t>(head)],
                           &sums[sequence * static_cast<size_t>(shape.heads) + static_cast<size_t>(head)]};
  const auto advance = [&, step = HWY_DYNAMIC_DISPATCH(SsdAdvance)](int64_t chunk, float* state) {
    step(Chunk(sequence, chunk, head, scratch), numbers.a, shape.head_dim, shape.state, state, scratch.scaled.data());
  };

  for (auto* rows : {&scratch.raw, &scratch.step, &scratch.slope}) rows->resize(static_cast<size_t>(s.rows));
  for (int64_t t = 0; t < s.rows; t++) scratch.raw[static_cast<size_t>(t)] = dt.Row<float>(s.row + t)[head];
  HWY_DYNAMIC_DISPATCH(SsdSteps)(scratch.raw.data(), dt_bias[static_cast<size_t>(head)], shape, scratch.step.data(), scratch.slope.data(), s.rows);

  scratch.checkpoints.resize(static_cast<size_t>(std::max<int64_t>(1, segments) * size));
  scratch.states.resize(static_cast<size_t>(segment * size));
  float *checkpoints = scratch.checkpoints.data(), *states = scratch.states.data(), *z = scratch.z.data();
  if (initial)
    std::copy_n(initial.At(static_cast<int64_t>(sequence)).At(head).as<float>(), size, checkpoints);
  else
    std::fill_n(checkpoints, size, 0.0f);
  for (int64_t i = 1; i < segments; i++) {
    float* state = std::copy_n(checkpoints + (i - 1) * size, size, checkpoints + i * size) - size;
    for (int64_t chunk = (i - 1) * segment; chunk < i * segment; chunk++) advance(chunk, state);
  }

  std::fill_n(z, size, 0.0f);
  for (int64_t i = segments; i-- > 0;) {
    const int64_t first = i * segment, last = std::min(first + segment, chunks) - 1;
    std::copy_n(checkpoints + i * size, size, states);
    for (int64_t chunk = first; chunk < last; chunk++) {
      float* state = states + (chunk - first) * size;
      advance(chunk, std::copy_n(state, size, state + size) - size);
    }
    for (int64_t chunk = last; chunk >= first; chunk--) {
      const int64_t row = s.row + chunk * kSsdChunk, shared = (slot * xbc.rows() + row) * shape.state;
      const SsdChunkGrad out = {
          dxbc.Row<float>(row) + head * shape.head_dim, dxbc.stride(0), ddt.Row<float>(row) + head, ddt.stride(0), db.data() + shared, dc.data() + shared};
      HWY_DYNAMIC_DISPATCH(SsdChunkBackward)(Chunk(sequence, chunk, head, scratch), out, numbers, states + (chunk - first) * size, z, scratch);
    }
  }
  if (dinitial) std::copy_n(z, size, dinitial.At(static_cast<int64_t>(sequence)).At(head).as<float>());
}

// Sums the shares of some heads into the rows of dB and dC, always in the order of heads.
void ScanBackward::AddShares(ThreadPool& threads, int64_t first_head, int64_t heads) const {
  constexpr int64_t kRows = 16;
  threads.For(xbc.rows(), kRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t slot = 0; slot < heads; slot++) {
        const int64_t head = first_head + slot, shared = (slot * xbc.rows() + t) * shape.state;
        const bool first = head % (shape.heads / shape.groups) == 0;
        float *b = dxbc.Row<float>(t) + shape.inner() + group(head) * shape.state, *c = b + shape.groups * shape.state;
        for (int64_t n = 0; n < shape.state; n++) {
          b[n] = (first ? 0 : b[n]) + db[static_cast<size_t>(shared + n)];
          c[n] = (first ? 0 : c[n]) + dc[static_cast<size_t>(shared + n)];
        }
      }
    }
  });
}

}  // namespace

void SsdScanBackward(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
                     const Batch& batch, const Tensor& initial, const Tensor& dy, const Tensor& dxbc, const Tensor& ddt, const Tensor& ddt_bias,
                     const Tensor& da_log, const Tensor& dd, const Tensor& dinitial) {
  ThreadPool& threads = *ctx.threads;
  const auto sequences = static_cast<int64_t>(batch.sequences.size());
  const int64_t at_once = std::min<int64_t>(shape.heads, threads.threads());
  ScanBackward scan = {shape, batch, xbc, dt, initial, dy, dxbc, ddt, dinitial, AsFloats(dt_bias), AsFloats(a_log), AsFloats(d)};
  scan.sums.resize(static_cast<size_t>(sequences * shape.heads));
  for (auto* shares : {&scan.db, &scan.dc}) shares->resize(static_cast<size_t>(at_once * xbc.rows() * shape.state));
  scan.Share(threads);

  std::vector<SsdScratch> scratch(static_cast<size_t>(threads.threads()), SsdScratch(shape.head_dim, shape.state));
  for (int64_t first = 0; first < shape.heads; first += at_once) {
    const int64_t heads = std::min(at_once, shape.heads - first);
    threads.For(sequences * heads, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; i++) scan.Head(static_cast<size_t>(i / heads), first + i % heads, i % heads, scratch[static_cast<size_t>(thread)]);
    });
    scan.AddShares(threads, first, heads);
  }

  for (int64_t h = 0; h < shape.heads; h++) {
    SsdHeadSums total;
    for (int64_t i = 0; i < sequences; i++) {
      const SsdHeadSums& part = scan.sums[static_cast<size_t>(i * shape.heads + h)];
      total.dt_bias += part.dt_bias, total.a_log += part.a_log, total.d += part.d;
    }
    if (ddt_bias) ddt_bias.as<float>()[h] += static_cast<float>(total.dt_bias);
    if (da_log) da_log.as<float>()[h] += static_cast<float>(total.a_log);
    if (dd) dd.as<float>()[h] += static_cast<float>(total.d);
  }
}

}  // namespace bamba::cpu
#endif
