// The scan: which kernel takes which sequence, and the kernel for any shape, whose order of sums is the same for one row and for many.
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/cuda/rows.cuh"
#include "ops/cuda/ssd.cuh"

namespace bamba::cuda {
namespace {

constexpr int kAnyThreads = 256, kAnyWarps = kAnyThreads / 32;

// How a block of the kernel for any shape uses its shared memory.
struct AnyLayout {
  int32_t slice;   // rows of a head's state that a block has
  int32_t stride;  // of rows of S, B and C: odd, so that a warp's lanes on successive rows meet different banks
  bool staged;     // B and C of a chunk lie in shared memory too
  size_t bytes() const {
    const size_t floats = static_cast<size_t>(slice) * stride + (staged ? 2 * kChunk * stride : 0) + kChunk * slice + kChunk * (kChunk + 1) + 2 * kChunk;
    return floats * sizeof(float);
  }
};

AnyLayout LayoutFor(int head_dim, int state) {
  constexpr size_t kBytes = 96 * 1024;
  for (const bool staged : {true, false})
    for (int slice = std::min(head_dim, 64);; slice = (slice + 1) / 2) {
      const AnyLayout layout = {slice, state | 1, staged};
      if (layout.bytes() <= kBytes) return layout;
      if (slice <= (staged ? 8 : 1)) break;
    }
  CHECK_MSG(false, "a scan with a state of {}", state);
  return {};
}

// Dot products of `kRows` rows of C with one row of S or B, in four partial sums by n mod 4.
template <int kRows, typename Left, typename Right>
__device__ __forceinline__ void Dots(int n, const Left& left, const Right& right, float (&out)[kRows]) {
  float sums[kRows][4] = {};
  int i = 0;
  for (; i + 4 <= n; i += 4) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float r = right(i + j);
#pragma unroll
      for (int row = 0; row < kRows; row++) sums[row][j] = fmaf(left(row, i + j), r, sums[row][j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 3; j++) {
    if (i + j >= n) break;
    const float r = right(i + j);
#pragma unroll
    for (int row = 0; row < kRows; row++) sums[row][j] = fmaf(left(row, i + j), r, sums[row][j]);
  }
#pragma unroll
  for (int row = 0; row < kRows; row++) out[row] = (sums[row][0] + sums[row][1]) + (sums[row][2] + sums[row][3]);
}

// Block (slice of a head, sequence) carries its rows of the state through the sequence in shared memory.
template <typename T, bool kStaged>
__global__ void __launch_bounds__(kAnyThreads) ScanAny(ScanOperands<T> o, Picked picked, AnyLayout layout) {
  extern __shared__ float shared[];
  LetNextBegin();
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, slices = (o.head_dim + layout.slice - 1) / layout.slice;
  const int head = blockIdx.x / slices, first_p = blockIdx.x % slices * layout.slice;
  const int rows = layout.slice < o.head_dim - first_p ? layout.slice : o.head_dim - first_p;  // of the state
  const int n = o.state, stride = layout.stride, group = o.GroupOf(head);
  float* const carried = shared;                                   // [slice][stride]  S
  float* const b_rows = carried + layout.slice * stride;           // [kChunk][stride]
  float* const c_rows = b_rows + (kStaged ? kChunk * stride : 0);  // [kChunk][stride]
  float* const x_rows = c_rows + (kStaged ? kChunk * stride : 0);  // [kChunk][slice]  x, then weighted
  float* const weights = x_rows + kChunk * layout.slice;           // [kChunk][kChunk + 1]  [t][s]
  float* const from_start = weights + kChunk * (kChunk + 1);       // [kChunk]  decay from the chunk's start up to and with t
  float* const to_end = from_start + kChunk;                       // [kChunk]  decay from s to the chunk's end · dt_s
  const float bias = o.dt_bias[head], rate = -expf(o.a_log[head]), d = o.d[head];
  WaitForPrevious();
  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  if (s.rows == 0) return;
  const int64_t end = s.position + s.rows, begin = s.position - s.position % kChunk;
  if (begin > 0) {
    const float* from = o.Boundary(s, begin, head) + static_cast<int64_t>(first_p) * n;
    for (int p = warp; p < rows; p += kAnyWarps)
      for (int k = lane; k < n; k += 32) carried[p * stride + k] = from[static_cast<int64_t>(p) * n + k];
  }
  for (int64_t b = begin; b < end; b += kChunk) {
    const int tokens = end - b < kChunk ? static_cast<int>(end - b) : kChunk, known = b < s.position ? static_cast<int>(s.position - b) : 0;
    const auto input_b = [&](int i, int k) { return kStaged ? b_rows[i * stride + k] : ToFloat(o.Row(s, b + i)[o.b_column + group * n + k]); };
    const auto input_c = [&](int i, int k) { return kStaged ? c_rows[i * stride + k] : ToFloat(o.Row(s, b + i)[o.c_column + group * n + k]); };
    if (tid < 32) {
      // Lane s sums the logs of the decays from token s on, each by itself and in order.
      float step = 0, log_decay = 0, from = 0, start = 0, last = 0;
      if (lane < tokens) {
        const float raw = o.RawStep(s, b + lane, head) + bias;
        step = raw > 20 ? raw : log1pf(expf(raw));
        step = step > o.dt_max ? o.dt_max : step;
        step = step < o.dt_min ? o.dt_min : step;
        log_decay = step * rate;
      }
      for (int t = 0; t < tokens; t++) {
        const float next = __shfl_sync(~0u, log_decay, t);
        start += next;
        if (lane < t) from += next;
        if (lane == t) last = start;
        if (t >= known && lane <= t) weights[t * (kChunk + 1) + lane] = expf(from) * step;
      }
      from_start[lane] = expf(last), to_end[lane] = expf(from) * step;
    }
    for (int i = warp; i < tokens; i += kAnyWarps) {
      const T* const row = o.Row(s, b + i);
      for (int p = lane; p < rows; p += 32) x_rows[i * layout.slice + p] = ToFloat(row[head * o.head_dim + first_p + p]);
      if constexpr (kStaged) {
        for (int k = lane; k < n; k += 32) {
          b_rows[i * stride + k] = ToFloat(row[o.b_column + group * n + k]);
          if (i >= known) c_rows[i * stride + k] = ToFloat(row[o.c_column + group * n + k]);
        }
      }
    }
    __syncthreads();
    for (int i = tid; i < (tokens - known) * kChunk; i += kAnyThreads) {
      const int t = known + i / kChunk, from = i % kChunk;
      if (from > t) continue;
      float score[1];
      Dots<1>(
          n, [&](int, int k) { return input_c(t, k); }, [&](int k) { return input_b(from, k); }, score);
      weights[t * (kChunk + 1) + from] *= score[0];
    }
    __syncthreads();
    const auto outputs = [&](auto count, int t, int p) {
      constexpr int kRows = decltype(count)::value;
      float sums[kRows] = {};
      if (b > 0) {
        Dots<kRows>(
            n, [&](int row, int k) { return input_c(t + row, k); }, [&](int k) { return carried[p * stride + k]; }, sums);
#pragma unroll
        for (int row = 0; row < kRows; row++) sums[row] = from_start[t + row] * sums[row];
      }
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        for (int from = 0; from <= t + row; from++) sums[row] = fmaf(weights[(t + row) * (kChunk + 1) + from], x_rows[from * layout.slice + p], sums[row]);
        const float y = fmaf(d, x_rows[(t + row) * layout.slice + p], sums[row]);
        o.y.Row(s.row + (b + t + row - s.position))[head * o.head_dim + first_p + p] = FromFloat<T>(y);
      }
    };
    const int fours = (tokens - known) / 4, pieces = fours + (tokens - known) % 4;
    for (int i = tid; i < pieces * rows; i += kAnyThreads) {
      const int piece = i / rows, p = i % rows;
      if (piece < fours)
        outputs(std::integral_constant<int, 4>{}, known + 4 * piece, p);
      else
        outputs(std::integral_constant<int, 1>{}, known + 3 * fours + piece, p);
    }
    float* const keep = o.KeepsBoundary(s, b + kChunk, end) ? o.Boundary(s, b + kChunk, head) + static_cast<int64_t>(first_p) * n : nullptr;
    if (tokens == kChunk && (keep != nullptr || b + kChunk < end)) {
      __syncthreads();
      for (int i = warp; i < kChunk; i += kAnyWarps)
        for (int p = lane; p < rows; p += 32) x_rows[i * layout.slice + p] *= to_end[i];
      __syncthreads();
      const float decay = from_start[kChunk - 1];
      for (int i = tid; i < (rows + 3) / 4 * n; i += kAnyThreads) {
        const int k = i % n, p = i / n * 4, count = rows - p < 4 ? rows - p : 4;
        float sums[4] = {};
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (b > 0 && j < count) sums[j] = decay * carried[(p + j) * stride + k];
        for (int from = 0; from < kChunk; from++) {
          const float right = input_b(from, k);
#pragma unroll
          for (int j = 0; j < 4; j++)
            if (j < count) sums[j] = fmaf(x_rows[from * layout.slice + p + j], right, sums[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (j >= count) break;
          carried[(p + j) * stride + k] = sums[j];
          if (keep != nullptr) keep[static_cast<int64_t>(p + j) * n + k] = sums[j];
        }
      }
    }
    __syncthreads();
  }
}

// Block (kept token, sequence) copies the inputs of one token.
template <typename T>
__global__ void __launch_bounds__(256) KeepInputs(ScanOperands<T> o, Picked picked) {
  LetNextBegin();
  WaitForPrevious();
  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  const int64_t end = s.position + s.rows, token = (s.rows > o.ring ? end - o.ring : s.position) + blockIdx.x;
  if (token >= end || !o.Keeps(s)) return;
  const T* from = o.Row(s, token);
  T* const to = o.KeptRow(s, token);
  constexpr int kCount = 16 / sizeof(T);
  int done = 0;
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    done = o.columns / kCount * kCount;
    for (int i = threadIdx.x * kCount; i < done; i += 256 * kCount) *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
  for (int i = done + threadIdx.x; i < o.columns; i += 256) to[i] = from[i];
  const T* steps = o.dt.Row(s.row + (token - s.position));
  T* const kept_steps = o.KeptSteps(s, token);
  for (int i = threadIdx.x; i < o.heads; i += 256) kept_steps[i] = steps[i];
}

// Calls launch(picked, count) for the named sequences, as often as a Picked holds them.
template <typename F>
void ForPicked(const std::vector<int32_t>& sequences, const F& launch) {
  for (size_t begin = 0; begin < sequences.size(); begin += Picked::kMost) {
    Picked picked;
    picked.all = false;
    const size_t count = std::min<size_t>(Picked::kMost, sequences.size() - begin);
    std::copy_n(sequences.begin() + static_cast<std::ptrdiff_t>(begin), count, picked.index);
    launch(picked, static_cast<int64_t>(count));
  }
}

template <typename T>
ScanOperands<T> OperandsOf(const State& device, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d,
                           const SsdShape& shape, const MambaState& state, const Tensor& y) {
  for (const Tensor* vector : {&dt_bias, &a_log, &d}) CHECK_MSG(vector->dtype() == Dtype::kF32, "scan's vectors in {}", Name(vector->dtype()));
  ScanOperands<T> o = {};
  o.xbc = ViewOf<const T>(xbc), o.dt = ViewOf<const T>(dt), o.y = ViewOf<T>(y), o.rows = xbc.rows();
  o.dt_bias = static_cast<const float*>(dt_bias.data()), o.a_log = static_cast<const float*>(a_log.data()), o.d = static_cast<const float*>(d.data());
  o.dt_min = static_cast<float>(shape.dt_min), o.dt_max = static_cast<float>(shape.dt_max);
  o.heads = static_cast<int32_t>(shape.heads), o.head_dim = static_cast<int32_t>(shape.head_dim), o.state = static_cast<int32_t>(shape.state);
  o.heads_per_group = static_cast<int32_t>(shape.heads / shape.groups);
  o.b_column = static_cast<int32_t>(shape.inner()), o.c_column = static_cast<int32_t>(shape.inner() + shape.groups * shape.state);
  o.columns = static_cast<int32_t>(shape.conv_dim());
  o.sequences = device.batch().sequences;
  if (state.ssm) {
    o.xbc_ring = static_cast<T*>(state.xbc.data()), o.dt_ring = static_cast<T*>(state.dt.data()), o.ssm = static_cast<float*>(state.ssm.data());
    o.xbc_slot = state.xbc.stride(0), o.xbc_token = state.xbc.stride(1), o.dt_slot = state.dt.stride(0), o.dt_token = state.dt.stride(1);
    o.ssm_slot = state.ssm.stride(0), o.ssm_boundary = state.ssm.stride(1);
    o.ring = static_cast<uint32_t>(state.xbc.shape(1)), o.boundaries = static_cast<uint32_t>(state.ssm.shape(1));
  }
  return o;
}

// Whether the kernels for heads of 64 with a state of 128 can take it.
bool Fast(const ScanOperands<bf16>& o, const Tensor& xbc, const MambaState& state, const Tensor& y) {
  return o.head_dim == 64 && o.state == 128 && Aligned16(xbc) && Aligned16(y) &&
         (!state.ssm ||
          (Aligned16(o.xbc_ring) && Aligned16(o.ssm) && o.xbc_slot % 8 == 0 && o.xbc_token % 8 == 0 && o.ssm_slot % 4 == 0 && o.ssm_boundary % 4 == 0));
}

}  // namespace

template <typename T>
void ScanAnyShape(State& device, const ScanOperands<T>& o, const Picked& picked, int64_t count) {
  const AnyLayout layout = LayoutFor(o.head_dim, o.state);
  const dim3 grid(static_cast<unsigned>(o.heads * DivideUp(o.head_dim, layout.slice)), static_cast<unsigned>(count));
  Launch(device, layout.staged ? ScanAny<T, true> : ScanAny<T, false>, grid, dim3(kAnyThreads), layout.bytes(), o, picked, layout);
}

template <typename T>
void KeepScanInputs(State& device, const ScanOperands<T>& o, const Picked& picked, int64_t count, int64_t most_rows) {
  if (o.ssm == nullptr) return;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(most_rows, o.ring)), static_cast<unsigned>(count));
  Launch(device, KeepInputs<T>, grid, dim3(256), 0, o, picked);
}

void SsdScan(Context& ctx, const Tensor& xbc, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d, const SsdShape& shape,
             const Batch& batch, const MambaState& state, const Tensor& y) {
  if (xbc.rows() == 0) return;
  State& device = StateOf(ctx);
  const int64_t most_rows = device.batch().most_rows;
  WithActivation(ctx.dtype, [&]<typename T>(T) {
    const ScanOperands<T> o = OperandsOf<T>(device, xbc, dt, dt_bias, a_log, d, shape, state, y);
    // Sequences by their rows, long ones first: they take longest. A batch of single rows is taken as a whole, so that its launches don't depend on more than
    // its size.
    std::vector<int32_t> one_row, more_rows;
    for (size_t i = 0; most_rows > 1 && i < batch.sequences.size(); i++)
      if (batch.sequences[i].rows > 0) (batch.sequences[i].rows == 1 ? one_row : more_rows).push_back(static_cast<int32_t>(i));
    std::stable_sort(more_rows.begin(), more_rows.end(), [&](int32_t a, int32_t b) { return batch.sequences[a].rows > batch.sequences[b].rows; });
    const auto all = static_cast<int64_t>(batch.sequences.size());

    if constexpr (std::is_same_v<T, bf16>) {
      if (Fast(o, xbc, state, y)) {
        if (most_rows == 1) return ScanOneRow(device, o, Picked{}, all);
        ForPicked(more_rows, [&](const Picked& picked, int64_t count) {
          ScanChunks(device, o, picked, count);
          KeepScanInputs(device, o, picked, count, most_rows);
        });
        return ForPicked(one_row, [&](const Picked& picked, int64_t count) { ScanOneRow(device, o, picked, count); });
      }
    }
    if (most_rows == 1) {
      ScanAnyShape(device, o, Picked{}, all);
      return KeepScanInputs(device, o, Picked{}, all, most_rows);
    }
    more_rows.insert(more_rows.end(), one_row.begin(), one_row.end());
    ForPicked(more_rows, [&](const Picked& picked, int64_t count) {
      ScanAnyShape(device, o, picked, count);
      KeepScanInputs(device, o, picked, count, most_rows);
    });
  });
}

void ConvScan(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& dt, const Tensor& dt_bias, const Tensor& a_log, const Tensor& d,
              const SsdShape& shape, const Batch& batch, const MambaState& state, const Tensor& xbc, const Tensor& y) {
  State& device = StateOf(ctx);
  const int64_t sequences = device.batch().sequence_count;
  if (ctx.dtype == Dtype::kBf16 && x.rows() > 0 && device.batch().most_rows == 1 && sequences == x.rows() && w.shape(2) == kTaps) {
    const ScanOperands<bf16> o = OperandsOf<bf16>(device, xbc, dt, dt_bias, a_log, d, shape, state, y);
    CHECK_MSG(w.dtype() == Dtype::kF32 && (!bias || bias.dtype() == Dtype::kF32), "convolution's weights in {}", Name(w.dtype()));
    ConvOperands conv = {};
    conv.x = ViewOf<const bf16>(x), conv.w = static_cast<const float*>(w.data()), conv.bias = static_cast<const float*>(bias.data());
    if (state.conv) {
      conv.ring = static_cast<bf16*>(state.conv.data());
      conv.slot = state.conv.stride(0), conv.token = state.conv.stride(1), conv.length = static_cast<uint32_t>(state.conv.shape(1));
    }
    const bool keeps = state.conv && state.ssm, keeps_nothing = !state.conv && !state.ssm;
    if (Fast(o, xbc, state, y) && Aligned16(x) && Aligned16(w.data()) &&
        (keeps_nothing || (keeps && conv.length >= kTaps && Aligned16(conv.ring) && conv.slot % 8 == 0 && conv.token % 8 == 0)) &&
        ConvScanOneRow(device, o, conv, sequences))
      return;
  }
  CausalConvSilu(ctx, x, w, bias, batch, state, xbc);
  SsdScan(ctx, xbc, dt, dt_bias, a_log, d, shape, batch, state, y);
}

}  // namespace bamba::cuda
