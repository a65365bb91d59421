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

__device__ __forceinline__ void CopyAsync(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Block (head, sequence). Warp w has rows [8w, 8w + 8) of S, a lane four columns of each; and tokens [4w, 4w + 4) of the chunk. The state waits in shared memory,
// not in registers, so that more blocks' states are on their way at once; a thread copies what it uses itself.
__global__ void __launch_bounds__(32 * kWarps, 6) OneRow(ScanOperands<bf16> o, Picked picked) {
  __shared__ float4 states[kRowsPerWarp][32 * kWarps];
  __shared__ float carried_part[kHeadDim];             // S C
  __shared__ float2 chunk_part[kWarps][kHeadDim / 2];  // Σ over a warp's tokens
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

  float4* const own_state = states[0] + threadIdx.x;
  if (b > 0) {
    const float* from = o.Boundary(s, b, head) + warp * kRowsPerWarp * kState + lane * 4;
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) CopyAsync(own_state + i * 32 * kWarps, from + i * kState);
  } else {
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; i++) own_state[i * 32 * kWarps] = make_float4(0, 0, 0, 0);
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

  WaitForCopies();
  float products[kRowsPerWarp];
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; i++) {
    const float4 state = own_state[i * 32 * kWarps];
    products[i] = fmaf(c[3], state.w, fmaf(c[2], state.z, fmaf(c[1], state.y, c[0] * state.x)));
  }
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
  if (kept && t == kChunk - 1) {
    const bf16 *const kept_rows = o.KeptRow(s, b), *const columns = kept_rows + x_column + warp * kRowsPerWarp;
    const int stride = static_cast<int>(o.xbc_token);
    float* to = o.Boundary(s, b + kChunk, head) + warp * kRowsPerWarp * kState + lane * 4;
#pragma unroll 1
    for (int i = 0; i < kRowsPerWarp; i += 2) {
      float4 s0 = own_state[i * 32 * kWarps], s1 = own_state[(i + 1) * 32 * kWarps];
      s0.x *= from_start, s0.y *= from_start, s0.z *= from_start, s0.w *= from_start;
      s1.x *= from_start, s1.y *= from_start, s1.z *= from_start, s1.w *= from_start;
#pragma unroll 8
      for (int from = 0; from < kChunk; from++) {
        // The row's own inputs are being kept just now.
        const uint2 raw_b = *reinterpret_cast<const uint2*>((from < t ? kept_rows + from * stride : row) + b_column + lane * 4);
        const uint32_t raw_x = *reinterpret_cast<const uint32_t*>((from < t ? columns + from * stride : row + x_column + warp * kRowsPerWarp) + i);
        const float w = __shfl_sync(~0u, decayed_step, from), w0 = w * LowHalf(raw_x), w1 = w * HighHalf(raw_x);
        const float in[4] = {LowHalf(raw_b.x), HighHalf(raw_b.x), LowHalf(raw_b.y), HighHalf(raw_b.y)};
        s0.x = fmaf(w0, in[0], s0.x), s0.y = fmaf(w0, in[1], s0.y), s0.z = fmaf(w0, in[2], s0.z), s0.w = fmaf(w0, in[3], s0.w);
        s1.x = fmaf(w1, in[0], s1.x), s1.y = fmaf(w1, in[1], s1.y), s1.z = fmaf(w1, in[2], s1.z), s1.w = fmaf(w1, in[3], s1.w);
      }
      __stcs(reinterpret_cast<float4*>(to + i * kState), s0);
      __stcs(reinterpret_cast<float4*>(to + (i + 1) * kState), s1);
    }
  }
}

}  // namespace

void ScanOneRow(State& device, const ScanOperands<bf16>& operands, const Picked& picked, int64_t count) {
  Launch(device, OneRow, dim3(static_cast<unsigned>(operands.heads), static_cast<unsigned>(count)), dim3(32 * kWarps), 0, operands, picked);
}

}  // namespace bamba::cuda
