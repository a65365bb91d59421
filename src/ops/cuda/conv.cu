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

// Four taps, channels in vectors of 16 bytes.
template <typename T>
__global__ void __launch_bounds__(64, 10) ConvFourTaps(Conv<T> c, int64_t block) {
  constexpr int kCount = Channels<T>::kCount, kAhead = 4;
  LetNextBegin();
  const int channel = (blockIdx.x * 64 + threadIdx.x) * kCount;
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
        Channels<T> window[3 + kAhead];  // tokens t − 3 … t + kAhead − 1
        int64_t token = s.position + (first - s.row);
#pragma unroll
        for (int k = 0; k < 3; k++) {
          window[k].raw = make_uint4(0, 0, 0, 0);
          if (token - 3 + k >= 0) window[k] = load(c.Input(s, token - 3 + k));
        }
        for (int64_t row = first; row < last; row += kAhead) {
#pragma unroll
          for (int k = 0; k < kAhead; k++)
            if (row + k < last) window[3 + k] = load(c.x.Row(row + k));
#pragma unroll
          for (int k = 0; k < kAhead; k++) {
            if (row + k >= last) break;
            float sum[kCount], in[kCount];
#pragma unroll
            for (int i = 0; i < kCount; i++) sum[i] = start[i];
#pragma unroll
            for (int tap = 0; tap < 4; tap++) {
              window[k + tap].Floats(in);
#pragma unroll
              for (int i = 0; i < kCount; i++) sum[i] = fmaf(taps[i][tap], in[i], sum[i]);
            }
#pragma unroll
            for (int i = 0; i < kCount; i++) sum[i] = Silu<T>(sum[i]);
            Channels<T> out;
            out.Set(sum);
            *reinterpret_cast<uint4*>(c.y.Row(row + k) + channel) = out.raw;
          }
#pragma unroll
          for (int k = 0; k < 3; k++) window[k] = window[kAhead + k];
        }
      },
      [&](const DeviceSequence& s) {
        const int64_t end = s.position + s.rows;
        for (int64_t token = s.rows > c.length ? end - c.length : s.position; token < end; token++)
          *reinterpret_cast<uint4*>(c.Kept(s, token) + channel) = load(c.Input(s, token)).raw;
      });
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
    const int64_t strips = DivideUp(c.channels, fast ? 64 * kCount : 128);
    // Long blocks read fewer rows twice; short ones make enough of them.
    const int64_t block = std::max(std::clamp<int64_t>(DivideUp(c.rows * strips, int64_t{16} * device.sms()), 1, 16), DivideUp(c.rows, 65535));
    const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(DivideUp(c.rows, block)));
    fast ? Launch(device, ConvFourTaps<T>, grid, dim3(64), 0, c, block) : Launch(device, ConvAnyTaps<T>, grid, dim3(128), 0, c, block);
  });
}

}  // namespace bamba::cuda
