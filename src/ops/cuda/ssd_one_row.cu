// The scan of sequences of one row with the numbers of ssd_chunks.cu: the same products of 16, in the same order. It is bound by reading the state.
#include "ops/cuda/ssd.cuh"
#include "ops/cuda/ssd_tensor.cuh"

namespace bamba::cuda {
namespace {

constexpr int kHeadDim = 64, kState = 128, kThreads = 128;
constexpr int kStateBytes = kState * 2, kXBytes = kHeadDim * 2;  // of a token's B or C, and of a head's x

// Block (head, sequence). A warp has 16 rows of S, as a product's first operand; the row's C is each of the second one's eight columns.
__global__ void __launch_bounds__(kThreads, 5) OneRow(ScanOperands<bf16> o, Picked picked) {
  __shared__ __align__(16) float states[kHeadDim * kState];
  __shared__ __align__(1024) char b_rows[kChunk * kStateBytes];
  __shared__ __align__(1024) char x_rows[kChunk * kXBytes];
  __shared__ __align__(16) char c_row[kStateBytes];
  LetNextBegin();
  const int head = blockIdx.x, tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, q = lane % 4;
  const HeadNumbers numbers = NumbersOf(o, head);
  WaitForPrevious();
  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  if (s.rows != 1) return;
  const int t = static_cast<int>(s.position % kChunk);
  const int64_t begin = s.position - t;
  const bool kept = o.Keeps(s);
  const int group = o.GroupOf(head), x_column = head * kHeadDim, b_column = o.b_column + group * kState, c_column = o.c_column + group * kState;

  // Of S, unit u of four columns of row r lies at unit u ^ 2 (r mod 4), so that pairs of columns of four rows lie in different banks.
  const uint32_t state_at = SharedAddress(states);
  const bf16* const row = o.xbc.Row(s.row);
  const float* const old_state = begin > 0 ? o.Boundary(s, begin, head) : nullptr;
#pragma unroll
  for (int i = 0; i < kHeadDim / 4; i++) {
    const int r = warp + 4 * i;
    CopyAsync(state_at + (r * (kState / 4) + (lane ^ 2 * warp)) * 16, begin > 0 ? static_cast<const void*>(old_state + r * kState + lane * 4) : row, begin > 0);
  }
  const bf16 *const kept_rows = t > 0 ? o.KeptRow(s, begin) : row, *const own_step = o.dt.Row(s.row) + head;
  const auto row_of = [&](int token) { return token < t ? kept_rows + token * o.xbc_token : row; };
  const uint32_t b_at = SharedAddress(b_rows), x_at = SharedAddress(x_rows);
#pragma unroll
  for (int i = 0; i < kChunk / 8; i++) {
    const int token = tid / 16 + 8 * i;
    CopyAsync(b_at + Place(token, tid % 16, kStateBytes), row_of(token) + b_column + tid % 16 * 8, token <= t);
  }
#pragma unroll
  for (int i = 0; i < kChunk / 16; i++) {
    const int token = tid / 8 + 16 * i;
    CopyAsync(x_at + Place(token, tid % 8, kXBytes), row_of(token) + x_column + tid % 8 * 8, token <= t);
  }
  if (tid < 16) CopyAsync(SharedAddress(c_row) + tid * 16, row + c_column + tid * 8, true);
  CommitCopies();

  // Lane i: token i's step, and the log of the decay from the chunk's start.
  const float raw = ToFloat(*(lane < t ? o.KeptSteps(s, begin) + lane * o.dt_token + head : own_step));
  const float step = lane <= t ? StepOf(raw, numbers.bias, o.dt_min, o.dt_max) : 0;
  float log = lane <= t ? LogDecay(step, numbers.rate) : 0;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float before = __shfl_up_sync(~0u, log, distance);
    if (lane >= distance) log += before;
  }
  const float log_row = __shfl_sync(~0u, log, t), weight = lane <= t ? FastExp2(log_row - log) * step : 0;
  WaitForCopies<0>();
  __syncthreads();

  const int state_row = (warp * 16 + g) * kState + q % 2 * 2;
  const auto state_pair = [&](int i, int half) {  // elements [8 i + 2 q + {0, 1}] of row g + 8 half
    return *reinterpret_cast<const float2*>(states + state_row + 8 * half * kState + ((2 * i + q / 2) ^ 2 * (g % 4)) * 4);
  };
  // Scores of tokens 16 j + {g, g + 8}, the same ones in every column.
  float score[2][4] = {}, outer[4] = {}, inner[4] = {};
#pragma unroll
  for (int k = 0; k < kState / 16; k++) {
    const uint32_t c0 = *reinterpret_cast<const uint32_t*>(c_row + 32 * k + 4 * q), c1 = *reinterpret_cast<const uint32_t*>(c_row + 32 * k + 16 + 4 * q);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      uint32_t b[4];
      LoadMatrices(b, b_at + Place(16 * j + lane % 16, 2 * k + lane / 16, kStateBytes));
      MultiplyAdd(score[j], b, c0, c1);
    }
    uint32_t carried[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 pair = state_pair(2 * k + i / 2, i % 2);
      carried[i] = PackPair(pair.x, pair.y);
    }
    MultiplyAdd(outer, carried, c0, c1);
  }
  uint32_t x[2][4];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    LoadTransposed(x[k], x_at + Place(16 * k + lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2, kXBytes));
    float weighted[2][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float own = score[k][2 * half] * __shfl_sync(~0u, weight, 16 * k + 8 * half + g);
#pragma unroll
      for (int i = 0; i < 2; i++) weighted[half][i] = __shfl_sync(~0u, own, (2 * q + i) * 4);
    }
    uint32_t leading[2], rest[2];
#pragma unroll
    for (int half = 0; half < 2; half++) SplitPair(weighted[half][0], weighted[half][1], leading[half], rest[half]);
    MultiplyAdd(inner, x[k], leading[0], leading[1]);
    MultiplyAdd(inner, x[k], rest[0], rest[1]);
  }

  // Lanes 0 … 7 have two columns beside each other.
  const float from_start = FastExp2(log_row);
  float y[2];
#pragma unroll
  for (int half = 0; half < 2; half++) y[half] = fmaf(from_start, outer[2 * half], inner[2 * half]);
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int from = (2 * q + i) * 4;
    const float low = __shfl_sync(~0u, y[0], from), high = __shfl_sync(~0u, y[1], from);
    pair[i] = lane < 4 ? low : high;
  }
  if (lane < 8) {
    const int column = x_column + warp * 16 + 2 * lane;
    const uint32_t own_x = *reinterpret_cast<const uint32_t*>(row + column);
    *reinterpret_cast<uint32_t*>(o.y.Row(s.row) + column) = PackPair(fmaf(numbers.d, LowHalf(own_x), pair[0]), fmaf(numbers.d, HighHalf(own_x), pair[1]));
  }

  // The row's own inputs are kept: no block of this launch reads them there.
  if (kept) {
    bf16* const to = o.KeptRow(s, s.position);
    const auto copy = [&](int column) { *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(row + column); };
    if (tid < 8) copy(x_column + tid * 8);
    if (tid >= 32 && tid < 64 && head == group * o.heads_per_group) copy((tid < 48 ? b_column : c_column) + tid % 16 * 8);
    if (tid == 64) o.KeptSteps(s, s.position)[head] = *own_step;
  }
  if (!kept || t != kChunk - 1) return;
  uint32_t leading[2][4], rest[2][4];  // x weighted
#pragma unroll
  for (int k = 0; k < 2; k++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float low = __shfl_sync(~0u, weight, 16 * k + 8 * half + 2 * q), high = __shfl_sync(~0u, weight, 16 * k + 8 * half + 2 * q + 1);
#pragma unroll
      for (int r = 2 * half; r < 2 * half + 2; r++) SplitPair(low * LowHalf(x[k][r]), high * HighHalf(x[k][r]), leading[k][r], rest[k][r]);
    }
  float* to = o.Boundary(s, begin + kChunk, head) + (warp * 16 + g) * kState + 2 * q;
#pragma unroll
  for (int i = 0; i < kState / 8; i += 2) {
    float state[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 pair = state_pair(i + j, half);
        state[j][2 * half] = pair.x * from_start, state[j][2 * half + 1] = pair.y * from_start;
      }
#pragma unroll
    for (int k = 0; k < 2; k++) {
      uint32_t b[4];
      LoadTransposed(b, b_at + Place(16 * k + lane % 16, i + lane / 16, kStateBytes));
      MultiplyAdd(state[0], leading[k], b[0], b[1]);
      MultiplyAdd(state[1], leading[k], b[2], b[3]);
      MultiplyAdd(state[0], rest[k], b[0], b[1]);
      MultiplyAdd(state[1], rest[k], b[2], b[3]);
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
      *reinterpret_cast<float2*>(to + 8 * (i + j)) = make_float2(state[j][0], state[j][1]);
      *reinterpret_cast<float2*>(to + 8 * kState + 8 * (i + j)) = make_float2(state[j][2], state[j][3]);
    }
  }
}

}  // namespace

void ScanOneRow(State& device, const ScanOperands<bf16>& o, const Picked& picked, int64_t count) {
  Launch(device, OneRow, dim3(static_cast<unsigned>(o.heads), static_cast<unsigned>(count)), dim3(kThreads), 0, o, picked);
}

}  // namespace bamba::cuda
