// The causal convolution: a thread takes some channels of a block of rows, and moves along them with the inputs it still needs in registers.
#include <algorithm>

#include "ops/cuda/rows.cuh"

namespace bamba::cuda {
namespace {

template <typename T>
struct Conv {
  MatrixView<const T> x;
  MatrixView<T> y;
  const float *w, *bias;  // [channels, d_conv], [channels] or null
  T* ring = nullptr;      // [slots, length, channels] or null
  int64_t slot_stride = 0, token_stride = 0;
  int32_t length = 0, channels = 0, d_conv = 0;
  const int32_t* row_sequence = nullptr;  // null: row i is sequence i
  const DeviceSequence* sequences = nullptr;
  int64_t rows = 0;

  __device__ bool Keeps(const DeviceSequence& s) const { return ring != nullptr && s.slot >= 0 && length > 0; }
  __device__ T* Kept(const DeviceSequence& s, int64_t token) const {
    return ring + s.slot * slot_stride + static_cast<uint32_t>(token) % static_cast<uint32_t>(length) * token_stride;
  }
  // Of token ≥ 0 of a sequence.
  __device__ const T* Input(const DeviceSequence& s, int64_t token) const { return token >= s.position ? x.Row(s.row + (token - s.position)) : Kept(s, token); }
};

// The rows that blocks of `block` rows own: a row that still reads the ring belongs to the block of its sequence's first row. So the thread that has a
// sequence's first row alone reads the ring's channels, and advances them when it has. Calls run(sequence, first, last) for its runs of rows, and then
// keep(sequence) where the first row was its own.
template <typename T, typename Run, typename Keep>
__device__ __forceinline__ void ForOwnRows(const Conv<T>& c, int64_t block, const Run& run, const Keep& keep) {
  const int64_t begin = blockIdx.y * block, end = begin + block < c.rows ? begin + block : c.rows;
  for (int64_t row = begin; row < end;) {
    const DeviceSequence s = c.sequences[c.row_sequence != nullptr ? c.row_sequence[row] : row];
    const int64_t stop = static_cast<int64_t>(s.row) + s.rows, early = s.row + (s.rows < c.d_conv - 1 ? s.rows : c.d_conv - 1);
    const int64_t first = s.row >= begin ? row : (row > early ? row : early);
    int64_t last = stop < end ? stop : end;
    if (s.row >= begin && last < early) last = early;
    if (first < last) run(s, first, last);
    if (s.row >= begin && c.Keeps(s)) keep(s);
    row = stop;
  }
}

// Eight channels of bf16, four of f32: 16 bytes.
template <typename T>
struct Channels {
  static constexpr int kCount = 16 / sizeof(T);
  uint4 raw;
  __device__ void Floats(float (&v)[kCount]) const {
    if constexpr (std::is_same_v<T, float>) {
      v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y), v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
    } else {
      Unpack8(raw, v);
    }
  }
  __device__ void Set(const float (&v)[kCount]) {
    if constexpr (std::is_same_v<T, float>) {
      raw = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
    } else {
      raw = make_uint4(PackPair(v[0], v[1]), PackPair(v[2], v[3]), PackPair(v[4], v[5]), PackPair(v[6], v[7]));
    }
  }
};

constexpr int kThreads = 64, kBlocks = 8;  // of a multiprocessor at once

// Four taps, channels in vectors of 16 bytes.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks) ConvFourTaps(Conv<T> c, int64_t block) {
  constexpr int kCount = Channels<T>::kCount, kAhead = 6;  // rows whose inputs are on their way
  LetNextBegin();
  const int channel = (blockIdx.x * kThreads + threadIdx.x) * kCount;
  if (channel >= c.channels) {
    WaitForPrevious();
    return;
  }
  float taps[kCount][4], start[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    const float4 w = *reinterpret_cast<const float4*>(c.w + (channel + i) * 4);
    taps[i][0] = w.x, taps[i][1] = w.y, taps[i][2] = w.z, taps[i][3] = w.w;
    start[i] = c.bias != nullptr ? c.bias[channel + i] : 0;
  }
  WaitForPrevious();
  const auto load = [&](const T* row) {
    Channels<T> v;
    v.raw = *reinterpret_cast<const uint4*>(row + channel);
    return v;
  };
  ForOwnRows(
      c, block,
      [&](const DeviceSequence& s, int64_t first, int64_t last) {
        Channels<T> next[kAhead];
        const T* from = c.x.Row(first) + channel;
        T* to = c.y.Row(first) + channel;
#pragma unroll
        for (int k = 0; k < kAhead; k++) {
          if (first + k < last) next[k].raw = *reinterpret_cast<const uint4*>(from);
          from += c.x.stride;
        }
        float window[3][kCount];  // of tokens t − 3, t − 2, t − 1
        const int64_t token = s.position + (first - s.row);
#pragma unroll
        for (int k = 0; k < 3; k++) {
          Channels<T> before;
          before.raw = make_uint4(0, 0, 0, 0);
          if (token - 3 + k >= 0) before = load(c.Input(s, token - 3 + k));
          before.Floats(window[k]);
        }
        for (int left = static_cast<int>(last - first); left > 0; left -= kAhead) {
#pragma unroll
          for (int k = 0; k < kAhead; k++) {
            if (k >= left) break;
            float in[kCount], sum[kCount];
            next[k].Floats(in);
            if (k + kAhead < left) next[k].raw = *reinterpret_cast<const uint4*>(from);
            from += c.x.stride;
#pragma unroll
            for (int i = 0; i < kCount; i++) {
              sum[i] = fmaf(taps[i][0], window[k % 3][i], start[i]);
              sum[i] = fmaf(taps[i][1], window[(k + 1) % 3][i], sum[i]);
              sum[i] = fmaf(taps[i][2], window[(k + 2) % 3][i], sum[i]);
              sum[i] = Silu<T>(fmaf(taps[i][3], in[i], sum[i]));
              window[k % 3][i] = in[i];
            }
            Channels<T> out;
            out.Set(sum);
            *reinterpret_cast<uint4*>(to) = out.raw;
            to += c.y.stride;
          }
        }
      },
      [&](const DeviceSequence& s) {
        const int64_t end = s.position + s.rows;
        for (int64_t token = s.rows > c.length ? end - c.length : s.position; token < end; token++)
          *reinterpret_cast<uint4*>(c.Kept(s, token) + channel) = load(c.Input(s, token)).raw;
      });
}

// Four numbers as they lie in memory.
template <typename T>
struct Four;
template <>
struct Four<float> {
  float4 raw;
  __device__ void Floats(float (&v)[4]) const { v[0] = raw.x, v[1] = raw.y, v[2] = raw.z, v[3] = raw.w; }
  __device__ void Set(const float (&v)[4]) { raw = make_float4(v[0], v[1], v[2], v[3]); }
};
template <>
struct Four<bf16> {
  uint2 raw;
  __device__ void Floats(float (&v)[4]) const { v[0] = LowHalf(raw.x), v[1] = HighHalf(raw.x), v[2] = LowHalf(raw.y), v[3] = HighHalf(raw.y); }
  __device__ void Set(const float (&v)[4]) { raw = make_uint2(PackPair(v[0], v[1]), PackPair(v[2], v[3])); }
};

constexpr int kOneRowThreads = 128;

// Four taps, every sequence has one row: row i is sequence i. A thread has four channels of kRows of them, whose inputs it loads at once.
template <typename T, int kRows>
__global__ void __launch_bounds__(kOneRowThreads) ConvOneRow(Conv<T> c) {
  LetNextBegin();
  const int channel = (blockIdx.x * kOneRowThreads + threadIdx.x) * 4, first = blockIdx.y * kRows;
  if (channel >= c.channels) {
    WaitForPrevious();
    return;
  }
  float taps[4][4], start[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float4 w = *reinterpret_cast<const float4*>(c.w + (channel + i) * 4);
    taps[i][0] = w.x, taps[i][1] = w.y, taps[i][2] = w.z, taps[i][3] = w.w;
    start[i] = c.bias != nullptr ? c.bias[channel + i] : 0;
  }
  WaitForPrevious();
  Four<T> in[kRows][4];
  T* kept[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    kept[r] = nullptr;
#pragma unroll
    for (int k = 0; k < 4; k++) in[r][k].Set({0, 0, 0, 0});
    if (first + r >= c.rows) continue;
    const DeviceSequence s = c.sequences[first + r];
    in[r][3] = *reinterpret_cast<const Four<T>*>(c.x.Row(first + r) + channel);
    if (!c.Keeps(s)) continue;
    T* const ring = c.ring + s.slot * c.slot_stride + channel;
    const auto entry = static_cast<int>(static_cast<uint32_t>(s.position) % static_cast<uint32_t>(c.length));
    kept[r] = ring + entry * c.token_stride;
#pragma unroll
    for (int k = 0; k < 3; k++) {
      const int at = entry - 3 + k;
      if (s.position - 3 + k >= 0) in[r][k] = *reinterpret_cast<const Four<T>*>(ring + (at < 0 ? at + c.length : at) * c.token_stride);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    if (first + r >= c.rows) continue;
    float sum[4], v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = start[i];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      in[r][k].Floats(v);
#pragma unroll
      for (int i = 0; i < 4; i++) sum[i] = fmaf(taps[i][k], v[i], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = Silu<T>(sum[i]);
    Four<T> out;
    out.Set(sum);
    *reinterpret_cast<Four<T>*>(c.y.Row(first + r) + channel) = out;
    if (kept[r] != nullptr) *reinterpret_cast<Four<T>*>(kept[r]) = in[r][3];
  }
}

// Any number of taps, any alignment: a thread has one channel.
template <typename T>
__global__ void __launch_bounds__(128) ConvAnyTaps(Conv<T> c, int64_t block) {
  LetNextBegin();
  const int channel = blockIdx.x * 128 + threadIdx.x;
  WaitForPrevious();
  if (channel >= c.channels) return;
  const float* taps = c.w + static_cast<int64_t>(channel) * c.d_conv;
  const float start = c.bias != nullptr ? c.bias[channel] : 0;
  ForOwnRows(
      c, block,
      [&](const DeviceSequence& s, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
          const int64_t oldest = s.position + (row - s.row) - c.d_conv + 1;
          float sum = start;
          for (int k = oldest < 0 ? static_cast<int>(-oldest) : 0; k < c.d_conv; k++) sum = fmaf(taps[k], ToFloat(c.Input(s, oldest + k)[channel]), sum);
          c.y.Row(row)[channel] = FromFloat<T>(Silu<T>(sum));
        }
      },
      [&](const DeviceSequence& s) {
        const int64_t end = s.position + s.rows;
        for (int64_t token = s.rows > c.length ? end - c.length : s.position; token < end; token++) c.Kept(s, token)[channel] = c.Input(s, token)[channel];
      });
}

}  // namespace

void CausalConvSilu(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch&, const MambaState& state, const Tensor& y) {
  if (x.rows() == 0 || x.cols() == 0) return;
  CHECK_MSG(w.dtype() == Dtype::kF32 && (!bias || bias.dtype() == Dtype::kF32), "convolution's weights in {}", Name(w.dtype()));
  State& device = StateOf(ctx);
  const DeviceBatch& batch = device.batch();
  WithActivation(ctx.dtype, [&]<typename T>(T) {
    Conv<T> c = {ViewOf<const T>(x), ViewOf<T>(y), static_cast<const float*>(w.data()), static_cast<const float*>(bias.data())};
    if (state.conv) {
      c.ring = static_cast<T*>(state.conv.data());
      c.slot_stride = state.conv.stride(0), c.token_stride = state.conv.stride(1), c.length = static_cast<int32_t>(state.conv.shape(1));
    }
    c.channels = static_cast<int32_t>(x.cols()), c.d_conv = static_cast<int32_t>(w.shape(2)), c.rows = x.rows();
    c.row_sequence = batch.most_rows == 1 && batch.sequence_count == c.rows ? nullptr : batch.row_sequence, c.sequences = batch.sequences;
    constexpr int64_t kCount = Channels<T>::kCount;
    const bool fast = c.d_conv == 4 && c.channels % kCount == 0 && Aligned16(x) && Aligned16(y) && Aligned16(w.data()) && Aligned16(c.ring) &&
                      c.slot_stride % kCount == 0 && c.token_stride % kCount == 0;
    if (fast && c.row_sequence == nullptr && c.rows <= 65535) {
      const int64_t strips = DivideUp(c.channels, 4 * kOneRowThreads);
      const int rows = c.rows * strips > 8 * device.sms() ? 4 : 1;
      const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(DivideUp(c.rows, rows)));
      return Launch(device, rows == 4 ? ConvOneRow<T, 4> : ConvOneRow<T, 1>, grid, dim3(kOneRowThreads), 0, c);
    }
    const int64_t strips = DivideUp(c.channels, fast ? kThreads * kCount : 128);
    // As many blocks as there is room for at once: long ones read fewer rows twice.
    const int64_t at_once = std::max<int64_t>(1, int64_t{kBlocks} * device.sms() / strips), block = DivideUp(c.rows, std::min<int64_t>(at_once, 65535));
    const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(DivideUp(c.rows, block)));
    fast ? Launch(device, ConvFourTaps<T>, grid, dim3(kThreads), 0, c, block) : Launch(device, ConvAnyTaps<T>, grid, dim3(128), 0, c, block);
  });
}

}  // namespace bamba::cuda
