// The scan of sequences of one row: reads a head's state once. It is bound by that.
#include "ops/cuda/rows.cuh"
#include "ops/cuda/ssd.cuh"

namespace bamba::cuda {
namespace {

constexpr int kHeadDim = 64, kState = 128, kWarps = 8;
constexpr int kRowsPerWarp = kHeadDim / kWarps, kTokensPerWarp = kChunk / kWarps;
static_assert(kRowsPerWarp == 8 && kTokensPerWarp == 4, "the sums across lanes are of eight and of four numbers");

// kCount sums over a warp's lanes at once. Each lane gets one of them, number SumHeld<kCount>(lane), in the same order of additions.
template <int kCount>
__device__ __forceinline__ float WarpSums(const float (&v)[kCount], int lane) {
  float held[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++) held[i] = v[i];
  int step = 16;
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2, step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < count; i++) {
      const float mine = upper ? held[count + i] : held[i], other = upper ? held[i] : held[count + i];
      held[i] = mine + __shfl_xor_sync(~0u, other, step);
    }
  }
#pragma unroll
  for (int last = 16 / kCount; last > 0; last /= 2) held[0] += __shfl_xor_sync(~0u, held[0], last);
  return held[0];
}
template <int kCount>
__device__ __forceinline__ int SumHeld(int lane) {
  return lane / (32 / kCount);
}

// Block (head, sequence). Warp w has rows [8w, 8w + 8) of S, a lane four columns of each; and tokens [4w, 4w + 4) of the chunk.
__global__ void __launch_bounds__(32 * kWarps, 4) OneRow(ScanOperands<bf16> o, Picked picked) {
  __shared__ float carried_part[kHeadDim];             // S C
  __shared__ float2 chunk_part[kWarps][kHeadDim / 2];  // Σ over a warp's tokens
  __shared__ uint2 b_rows[kChunk][kState / 4];         // where the row completes its chunk
  __shared__ float2 weighted_x[kChunk][kHeadDim / 2];
  LetNextBegin();
  const int head = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const HeadNumbers numbers = NumbersOf(o, head);
  WaitForPrevious();
  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  if (s.rows != 1) return;
  const int t = static_cast<int>(s.position % kChunk);
  const int64_t b = s.position - t;
  const bool kept = o.Keeps(s);
  const int group = o.GroupOf(head), x_column = head * kHeadDim, b_column = o.b_column + group * kState, c_column = o.c_column + group * kState;

  float4 state[kRowsPerWarp];
  if (b > 0) {
    const float* from = o.Boundary(s, b, head) + warp * kRowsPerWarp * kState + lane * 4;
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) state[i] = __ldcs(reinterpret_cast<const float4*>(from + i * kState));
  } else {
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) state[i] = make_float4(0, 0, 0, 0);
  }
  const bf16 *const row = o.xbc.Row(s.row), *kept_row = row, *const own_step = o.dt.Row(s.row) + head, *step_at = own_step;
  if (t > 0) {
    kept_row = o.KeptRow(s, b) + warp * kTokensPerWarp * static_cast<int>(o.xbc_token);
    if (lane < t) step_at = o.KeptSteps(s, b) + lane * static_cast<int>(o.dt_token) + head;
  }
  uint2 token_b[kTokensPerWarp];
  uint32_t token_x[kTokensPerWarp];
#pragma unroll
  for (int i = 0; i < kTokensPerWarp; i++) {
    const int from = warp * kTokensPerWarp + i;
    token_b[i] = make_uint2(0, 0), token_x[i] = 0;
    const bf16* in = from == t ? row : kept_row;
    if (from <= t) {
      token_b[i] = *reinterpret_cast<const uint2*>(in + b_column + lane * 4);
      token_x[i] = *reinterpret_cast<const uint32_t*>(in + x_column + lane * 2);
    }
    kept_row += o.xbc_token;
  }
  const uint2 raw_c = *reinterpret_cast<const uint2*>(row + c_column + lane * 4);
  const uint32_t own_x = *reinterpret_cast<const uint32_t*>(row + x_column + lane * 2);
  const float raw_step = ToFloat(*step_at);

  // Lane i: token i's step and its decay up to this row.
  float step = 0, log_decay = 0;
  if (lane <= t) step = StepOf(raw_step, numbers.bias, o.dt_min, o.dt_max), log_decay = LogDecay(step, numbers.rate);
  float since = log_decay;  // Σ of the logs of tokens ≥ lane
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float more = __shfl_down_sync(~0u, since, distance);
    if (lane + distance < 32) since += more;
  }
  const float from_start = FastExp2(__shfl_sync(~0u, since, 0));
  float after = __shfl_down_sync(~0u, since, 1);
  if (lane == 31) after = 0;
  const float decayed_step = FastExp2(after) * step;

  const float c[4] = {LowHalf(raw_c.x), HighHalf(raw_c.x), LowHalf(raw_c.y), HighHalf(raw_c.y)};
  float scores[kTokensPerWarp];
#pragma unroll
  for (int i = 0; i < kTokensPerWarp; i++) {
    scores[i] = c[0] * LowHalf(token_b[i].x);
    scores[i] = fmaf(c[1], HighHalf(token_b[i].x), scores[i]);
    scores[i] = fmaf(c[2], LowHalf(token_b[i].y), scores[i]);
    scores[i] = fmaf(c[3], HighHalf(token_b[i].y), scores[i]);
  }
  const float score = WarpSums(scores, lane);
  const float weight = score * __shfl_sync(~0u, decayed_step, warp * kTokensPerWarp + SumHeld<kTokensPerWarp>(lane));
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < kTokensPerWarp; i++) {
    const float w = __shfl_sync(~0u, weight, i * (32 / kTokensPerWarp));
    sum.x = fmaf(w, LowHalf(token_x[i]), sum.x), sum.y = fmaf(w, HighHalf(token_x[i]), sum.y);
  }
  chunk_part[warp][lane] = sum;

  const bool completes = kept && t == kChunk - 1;
  if (completes) {
#pragma unroll
    for (int i = 0; i < kTokensPerWarp; i++) {
      const int from = warp * kTokensPerWarp + i;
      const float w = __shfl_sync(~0u, decayed_step, from);
      b_rows[from][lane] = token_b[i];
      weighted_x[from][lane] = make_float2(w * LowHalf(token_x[i]), w * HighHalf(token_x[i]));
    }
  }

  float products[kRowsPerWarp];
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; i++) products[i] = fmaf(c[3], state[i].w, fmaf(c[2], state[i].z, fmaf(c[1], state[i].y, c[0] * state[i].x)));
  const float product = WarpSums(products, lane);
  if (lane % (32 / kRowsPerWarp) == 0) carried_part[warp * kRowsPerWarp + SumHeld<kRowsPerWarp>(lane)] = product;
  __syncthreads();

  if (warp == 0) {
    float2 y = make_float2(from_start * carried_part[2 * lane], from_start * carried_part[2 * lane + 1]);
#pragma unroll
    for (int w = 0; w < kWarps; w++) y.x += chunk_part[w][lane].x, y.y += chunk_part[w][lane].y;
    y.x = fmaf(numbers.d, LowHalf(own_x), y.x), y.y = fmaf(numbers.d, HighHalf(own_x), y.y);
    *reinterpret_cast<uint32_t*>(o.y.Row(s.row) + x_column + lane * 2) = PackPair(y.x, y.y);
  }
  // Nobody else of this launch reads or writes these numbers.
  if (kept && warp == 1) {
    bf16* const to = o.KeptRow(s, s.position);
    *reinterpret_cast<uint32_t*>(to + x_column + lane * 2) = own_x;
    if (head == group * o.heads_per_group) {
      *reinterpret_cast<uint2*>(to + c_column + lane * 4) = raw_c;
      *reinterpret_cast<uint2*>(to + b_column + lane * 4) = *reinterpret_cast<const uint2*>(row + b_column + lane * 4);
    }
    if (lane == 0) o.KeptSteps(s, s.position)[head] = *own_step;
  }
  if (completes) {
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) state[i].x *= from_start, state[i].y *= from_start, state[i].z *= from_start, state[i].w *= from_start;
#pragma unroll 4
    for (int from = 0; from < kChunk; from++) {
      const uint2 raw_b = b_rows[from][lane];
      const float in[4] = {LowHalf(raw_b.x), HighHalf(raw_b.x), LowHalf(raw_b.y), HighHalf(raw_b.y)};
#pragma unroll
      for (int i = 0; i < kRowsPerWarp; i += 2) {
        const float2 w = weighted_x[from][(warp * kRowsPerWarp + i) / 2];
        state[i].x = fmaf(w.x, in[0], state[i].x), state[i].y = fmaf(w.x, in[1], state[i].y);
        state[i].z = fmaf(w.x, in[2], state[i].z), state[i].w = fmaf(w.x, in[3], state[i].w);
        state[i + 1].x = fmaf(w.y, in[0], state[i + 1].x), state[i + 1].y = fmaf(w.y, in[1], state[i + 1].y);
        state[i + 1].z = fmaf(w.y, in[2], state[i + 1].z), state[i + 1].w = fmaf(w.y, in[3], state[i + 1].w);
      }
    }
    float* to = o.Boundary(s, b + kChunk, head) + warp * kRowsPerWarp * kState + lane * 4;
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) __stcs(reinterpret_cast<float4*>(to + i * kState), state[i]);
  }
}

}  // namespace

void ScanOneRow(State& device, const ScanOperands<bf16>& operands, const Picked& picked, int64_t count) {
  Launch(device, OneRow, dim3(static_cast<unsigned>(operands.heads), static_cast<unsigned>(count)), dim3(32 * kWarps), 0, operands, picked);
}

}  // namespace bamba::cuda
