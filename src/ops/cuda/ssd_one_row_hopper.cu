// Convolution and scan of sequences of one row on Hopper, with the numbers of conv.cu and ssd_chunks.cu: the same sums, and the same products of 16 in the same
// order. It is bound by reading the state. A block has some heads of a sequence, which have B and C in common: the convolution of those and of the heads' x,
// and the tokens' scores, come first, once. Then it goes from head to head: a warp brings what the slot holds to shared memory, of the next one while one is
// computed; another one computes decays and weights; four have 16 rows of S each.
//
// What a row finds in its slot is older than the step: a copy to the device (State::Begin) lies between whatever wrote it and the step's first kernel, and in a
// step nobody else has that slot of that layer. So it is asked for before WaitForPrevious.
#include <algorithm>
#include <cstddef>

#include "ops/cuda/ssd.cuh"
#include "ops/cuda/ssd_tensor.cuh"

namespace bamba::cuda {
namespace {

constexpr int kHeadDim = 64, kState = 128;
constexpr int kStateWarps = 4, kThreads = (kStateWarps + 2) * 32;
constexpr int kStages = 2, kResident = 2;  // heads on their way, blocks on a multiprocessor
constexpr int kMostHeads = 8;              // of a block
// Distances in shared memory: so that rows which are read together lie in different banks. Four rows of S lie one after the other, 32 bytes after the four
// before.
constexpr int kFourRows = 4 * kState + 8, kBRow = kState + 8, kXRow = kHeadDim + 8;

struct OneRowMemory {
  // Of a head, what its slot holds: S at the chunk's start, and x of the chunk's tokens; the row's own x comes to them.
  struct Stage {
    float states[kHeadDim / 4 * kFourRows];
    bf16 x[kChunk * kXRow];
  };
  // How S decays up to the row, and the tokens' contributions; and the weights of their x in y, of two tokens each: leading bits and the rest.
  struct alignas(16) Row {
    float decayed_steps[kChunk];
    uint2 weights[kChunk / 2];
    float from_start;
  };
  Stage stages[kStages];
  bf16 b[kChunk * kBRow], c[kState];   // the chunk's, and the row's
  bf16 own_x[kMostHeads * kHeadDim];   // the row's
  bf16 raw_steps[kMostHeads][kChunk];  // by token
  float scores[kChunk];
  Row rows[kStages];
  uint64_t landed[kStages], known[kStages], empty[kStages];  // the stage; the row, and its x; all has been used
  uint64_t b_landed, scored;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// `bytes` to shared memory; what is read once needn't stay in the cache.
__device__ __forceinline__ void CopyBytes(uint32_t to, const void* from, int bytes, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier), "l"(policy)
               : "memory");
}
// Arrives once all copies that this thread asked for (CopyAsync) have come.
__device__ __forceinline__ void ArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Four channels of a row on their way through the convolution.
struct ConvRow {
  uint2 inputs[kTaps];  // oldest first
  float4 taps[4];
  float start[4];

  __device__ __forceinline__ void ReadWeights(const ConvOperands& conv, int column) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
      taps[c] = *reinterpret_cast<const float4*>(conv.w + (column + c) * kTaps);
      start[c] = conv.bias != nullptr ? conv.bias[column + c] : 0;
    }
  }
  __device__ __forceinline__ void ReadKept(const ConvOperands& conv, const DeviceSequence& s, int column) {
    const int entry = conv.ring != nullptr ? static_cast<int>(EntryOf(static_cast<uint32_t>(s.position), conv.length)) : 0;
    const bf16* const ring = conv.ring + s.slot * conv.slot + column;
#pragma unroll
    for (int k = 0; k < kTaps - 1; k++) {
      const int back = entry - (kTaps - 1) + k;
      inputs[k] = make_uint2(0, 0);
      if (s.position >= kTaps - 1 - k) inputs[k] = *reinterpret_cast<const uint2*>(ring + (back < 0 ? back + static_cast<int>(conv.length) : back) * conv.token);
    }
  }
  __device__ __forceinline__ void ReadOwn(const ConvOperands& conv, const DeviceSequence& s, int column) {
    inputs[kTaps - 1] = *reinterpret_cast<const uint2*>(conv.x.Row(s.row) + column);
  }
  __device__ __forceinline__ uint2 Result() const {
    float sum[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const float w[kTaps] = {taps[c].x, taps[c].y, taps[c].z, taps[c].w};
      sum[c] = start[c];
#pragma unroll
      for (int k = 0; k < kTaps; k++) {
        const uint32_t pair = c < 2 ? inputs[k].x : inputs[k].y;
        sum[c] = fmaf(w[k], c % 2 == 0 ? LowHalf(pair) : HighHalf(pair), sum[c]);
      }
      sum[c] = Silu<bf16>(sum[c]);
    }
    return make_uint2(PackPair(sum[0], sum[1]), PackPair(sum[2], sum[3]));
  }
};
#endif

// Block (some of the heads, sequence).
__global__ void __launch_bounds__(kThreads, kResident)
    ConvScanRow(const __grid_constant__ ScanOperands<bf16> o, const __grid_constant__ ConvOperands conv, int heads) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(16) char shared[];
  OneRowMemory& memory = *reinterpret_cast<OneRowMemory*>(shared);
  const uint32_t at = SharedAddress(shared);
  const auto landed = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, landed) + n % kStages * 8); };
  const auto known = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, known) + n % kStages * 8); };
  const auto empty = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, empty) + n % kStages * 8); };
  const uint32_t b_landed = at + static_cast<uint32_t>(offsetof(OneRowMemory, b_landed)), scored = at + static_cast<uint32_t>(offsetof(OneRowMemory, scored));
  const auto round = [](int n) { return n / kStages & 1; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) InitBarrier(landed(i), 1 + 32), InitBarrier(known(i), 32), InitBarrier(empty(i), kStateWarps * 32);
    InitBarrier(b_landed, 32), InitBarrier(scored, 2 * 32);
    PublishBarriers();
  }
  LetNextBegin();
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), g = lane / 4, q = lane % 4;
  const int first_head = static_cast<int>(blockIdx.x) * heads, group = o.GroupOf(first_head);
  const int b_column = o.b_column + group * kState, c_column = o.c_column + group * kState;
  const DeviceSequence s = o.sequences[blockIdx.y];
  const int t = static_cast<int>(static_cast<uint32_t>(s.position) % kChunk);  // within its chunk
  const int64_t begin = s.position - t;
  const bool keeps = o.Keeps(s);

  if (warp == kStateWarps + 1) {
    uint64_t once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    // `columns` of the chunk's tokens before the row, from `column` on, to rows `distance` apart.
    const auto copy_kept = [&](int columns, int column, uint32_t to, int distance) {
      const int units = columns / 8, rows = 32 / units;  // of a row; that the warp copies at a time
      const bf16* from = o.KeptRow(s, begin) + lane / units * o.xbc_token + column + lane % units * 8;
      to += (lane / units * distance + lane % units * 8) * 2;
#pragma unroll 4
      for (int first = 0; first < t; first += rows, from += rows * o.xbc_token, to += rows * distance * 2)
        if (first + lane / units < t) CopyAsync(to, from, true);
    };
    for (int n = 0; n < heads; n++) {
      const uint32_t stage = at + static_cast<uint32_t>(n % kStages * sizeof(OneRowMemory::Stage));
      if (n >= kStages) WaitFor(empty(n), round(n) ^ 1);
      if (lane == 0) ArriveForBytes(landed(n), begin > 0 ? kHeadDim * kState * 4 : 0);
      __syncwarp();
      if (begin > 0 && lane < kHeadDim / 4)
        CopyBytes(stage + lane * kFourRows * 4, o.Boundary(s, begin, first_head + n) + lane * 4 * kState, 4 * kState * 4, landed(n), once);
      if (n == 0) {
        if (t > 0) copy_kept(kState, b_column, at + static_cast<uint32_t>(offsetof(OneRowMemory, b)), kBRow);
        ArriveAfterCopies(b_landed);
      }
      if (t > 0) copy_kept(kHeadDim, (first_head + n) * kHeadDim, stage + static_cast<uint32_t>(offsetof(OneRowMemory::Stage, x)), kXRow);
      ArriveAfterCopies(landed(n));
    }
    WaitForPrevious();
    return;
  }

  // Warp kStateWarps and those of the states, once the row's own inputs and what it needs of the chunk's steps lie in shared memory.
  const auto wait_for_row = [] { asm volatile("bar.sync 1, %0;" ::"n"((kStateWarps + 1) * 32) : "memory"); };

  if (warp == kStateWarps) {
    // Lane i has token i's step, and the log of the decay from the chunk's start. Nothing in the loop over the heads comes from global memory, which takes
    // longer than a head while all others read states.
    HeadNumbers numbers = {};
    if (lane < heads) numbers = NumbersOf(o, first_head + lane);
    const auto read_steps = [&](bool these, const bf16* from) {
      bf16 steps[kMostHeads];
#pragma unroll
      for (int n = 0; n < kMostHeads; n++)
        if (these && n < heads) steps[n] = from[first_head + n];
#pragma unroll
      for (int n = 0; n < kMostHeads; n++)
        if (these && n < heads) memory.raw_steps[n][lane] = steps[n];
    };
    if (t > 0) read_steps(lane < t, o.KeptSteps(s, begin) + lane * o.dt_token);
    WaitForPrevious();
    read_steps(lane == t, o.dt.Row(s.row));
    wait_for_row();
    if (keeps && lane < heads) o.KeptSteps(s, s.position)[first_head + lane] = memory.raw_steps[lane][t];  // no block of this launch reads them
    for (int n = 0; n < heads; n++) {
      const float bias = __shfl_sync(~0u, numbers.bias, n), rate = __shfl_sync(~0u, numbers.rate, n);
      const float step = lane <= t ? StepOf(ToFloat(memory.raw_steps[n][lane]), bias, o.dt_min, o.dt_max) : 0;
      float log = lane <= t ? LogDecay(step, rate) : 0;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const float before = __shfl_up_sync(~0u, log, distance);
        if (lane >= distance) log += before;
      }
      const float log_row = __shfl_sync(~0u, log, t), decayed_step = lane <= t ? FastExp2(log_row - log) * step : 0;
      if (n == 0) WaitFor(scored, 0);
      const float weight = lane <= t ? memory.scores[lane] * decayed_step : 0, following = __shfl_down_sync(~0u, weight, 1);
      uint2 split;
      SplitPair(weight, following, split.x, split.y);

      if (n >= kStages) WaitFor(empty(n), round(n) ^ 1);
      OneRowMemory::Row& row = memory.rows[n % kStages];
      row.decayed_steps[lane] = decayed_step;
      if (lane % 2 == 0) row.weights[lane / 2] = split;
      if (lane == 0) row.from_start = FastExp2(log_row);
      if (lane < 16)
        *reinterpret_cast<uint2*>(memory.stages[n % kStages].x + t * kXRow + lane * 4) =
            *reinterpret_cast<const uint2*>(memory.own_x + n * kHeadDim + lane * 4);
      Arrive(known(n));
    }
    return;
  }

  // The row's convolution, four channels at a time: B, C, and x of the block's heads. Then two warps score 16 tokens each, {g, g + 8} of them in each column.
  {
    constexpr int kFours = kState / 4, kMostItems = 2 * kFours + kMostHeads * kHeadDim / 4, kTimes = (kMostItems + kStateWarps * 32 - 1) / (kStateWarps * 32);
    const int items = 2 * kFours + heads * (kHeadDim / 4);
    const auto item_of = [](int time) { return static_cast<int>(threadIdx.x) + time * kStateWarps * 32; };
    const auto column_of = [&](int item) {
      return item < kFours ? b_column + item * 4 : item < 2 * kFours ? c_column + (item - kFours) * 4 : first_head * kHeadDim + (item - 2 * kFours) * 4;
    };
    ConvRow in[kTimes];
#pragma unroll
    for (int time = 0; time < kTimes; time++)
      if (const int item = item_of(time); item < items) in[time].ReadWeights(conv, column_of(item)), in[time].ReadKept(conv, s, column_of(item));
    WaitForPrevious();
#pragma unroll
    for (int time = 0; time < kTimes; time++)
      if (const int item = item_of(time); item < items) in[time].ReadOwn(conv, s, column_of(item));
#pragma unroll
    for (int time = 0; time < kTimes; time++) {
      const int item = item_of(time), column = column_of(item);
      if (item >= items) break;
      const uint2 own = in[time].Result();
      bf16* to = memory.own_x + (item - 2 * kFours) * 4;
      if (item < kFours) to = memory.b + t * kBRow + item * 4;
      else if (item < 2 * kFours) to = memory.c + (item - kFours) * 4;
      *reinterpret_cast<uint2*>(to) = own;
      if (keeps && (item >= 2 * kFours || first_head == group * o.heads_per_group)) {
        *reinterpret_cast<uint2*>(o.KeptRow(s, s.position) + column) = own;
        *reinterpret_cast<uint2*>(conv.Kept(s, s.position) + column) = in[time].inputs[kTaps - 1];
      }
    }
  }
  wait_for_row();
  uint32_t c[kState / 16][2];
#pragma unroll
  for (int k = 0; k < kState / 16; k++)
#pragma unroll
    for (int half = 0; half < 2; half++) c[k][half] = *reinterpret_cast<const uint32_t*>(memory.c + 16 * k + 8 * half + 2 * q);
  if (warp < 2) {
    WaitFor(b_landed, 0);
    float score[4] = {};
    const uint32_t b_at = SharedAddress(memory.b + (warp * 16 + lane % 16) * kBRow + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < kState / 16; k++) {
      uint32_t b[4];
      LoadMatrices(b, b_at + 32 * k);
      MultiplyAdd(score, b, c[k][0], c[k][1]);
    }
    if (q == 0) memory.scores[warp * 16 + g] = score[0], memory.scores[warp * 16 + 8 + g] = score[2];
    Arrive(scored);
  }

  // A warp has 16 rows of S, as a product's first operand; the row's C is each of the second one's eight columns. Row r of the product is row 4 (r mod 4) + r /
  // 4 of the warp's, so that those which are read together lie in different fours.
  for (int n = 0; n < heads; n++) {
    const int head = first_head + n, x_column = head * kHeadDim;
    const float d = o.d[head];
    const OneRowMemory::Stage& stage = memory.stages[n % kStages];
    const OneRowMemory::Row& row = memory.rows[n % kStages];
    WaitFor(landed(n), round(n));
    float outer[4] = {}, inner[4] = {};
    if (begin > 0) {
      const float* const state = stage.states + (warp * 4 + g % 4) * kFourRows + g / 4 * kState + 2 * q;
#pragma unroll
      for (int k = 0; k < kState / 16; k++) {
        uint32_t carried[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
          const float2 pair = *reinterpret_cast<const float2*>(state + r % 2 * 2 * kState + 16 * k + r / 2 * 8);
          carried[r] = PackPair(pair.x, pair.y);
        }
        MultiplyAdd(outer, carried, c[k][0], c[k][1]);
      }
    }
    WaitFor(known(n), round(n));
    // Of tokens 16 k + 2 q, the next, and 8 further; what lies beyond the row is another head's.
    uint32_t x[2][4];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int token = 16 * k + lane % 8 + lane / 16 * 8;
      LoadTransposed(x[k], SharedAddress(stage.x + token * kXRow + (warp * 2 + lane / 8 % 2) * 8));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int first = 16 * k + 8 * half + 2 * q;
        const uint32_t there = first < t ? ~0u : first == t ? 0xffffu : 0;
        x[k][2 * half] &= there, x[k][2 * half + 1] &= there;
      }
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const uint2 low = row.weights[8 * k + q], high = row.weights[8 * k + 4 + q];
      MultiplyAdd(inner, x[k], low.x, high.x);
      MultiplyAdd(inner, x[k], low.y, high.y);
    }
    const float from_start = row.from_start;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int from = g % 4 * 4 + g / 4 + 2 * half;  // the row of `outer` for row g + 8 half
      const float low = __shfl_sync(~0u, outer[0], from % 8 * 4), high = __shfl_sync(~0u, outer[2], from % 8 * 4);
      const int p = warp * 16 + g + 8 * half;
      if (q == 0)
        o.y.Row(s.row)[x_column + p] =
            FromFloat<bf16>(fmaf(d, ToFloat(stage.x[t * kXRow + p]), fmaf(from_start, from < 8 ? low : high, inner[2 * half])));
    }
    if (t == kChunk - 1 && keeps) {
      uint32_t leading[2][4], rest[2][4];  // x weighted
#pragma unroll
      for (int k = 0; k < 2; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float2 weight = *reinterpret_cast<const float2*>(row.decayed_steps + 16 * k + 8 * half + 2 * q);
#pragma unroll
          for (int r = 2 * half; r < 2 * half + 2; r++) SplitPair(weight.x * LowHalf(x[k][r]), weight.y * HighHalf(x[k][r]), leading[k][r], rest[k][r]);
        }
      const auto state_at = [&](int r) { return (warp * 4 + r / 4) * kFourRows + r % 4 * kState + 2 * q; };
      float* const to = o.Boundary(s, begin + kChunk, head) + (warp * 16 + g) * kState + 2 * q;
#pragma unroll 2
      for (int i = 0; i < kState / 8; i += 2) {
        float state[2][4];
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            float2 pair = make_float2(0, 0);
            if (begin > 0) pair = *reinterpret_cast<const float2*>(stage.states + state_at(g + 8 * half) + 8 * (i + j));
            state[j][2 * half] = pair.x * from_start, state[j][2 * half + 1] = pair.y * from_start;
          }
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const int token = 16 * k + lane % 16;
          uint32_t b[4];
          LoadTransposed(b, SharedAddress(memory.b + token * kBRow + (i + lane / 16) * 8));
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
    Arrive(empty(n));
  }
#endif
}

}  // namespace

bool ConvScanOneRow(State& device, const ScanOperands<bf16>& o, const ConvOperands& conv, int64_t count) {
  if (!device.hopper()) return false;
  // As many heads to a block as take the fewest rounds of them; what comes before the first one takes about as long as a head.
  const auto cost = [&](int64_t heads) { return DivideUp(o.heads / heads * count, int64_t{kResident} * device.sms()) * (heads + 1); };
  int64_t heads = 1;
  for (int64_t more = 2; more <= kMostHeads && o.heads_per_group % more == 0; more *= 2)
    if (cost(more) < cost(heads)) heads = more;
  const dim3 grid(static_cast<unsigned>(o.heads / heads), static_cast<unsigned>(count));
  Launch(device, ConvScanRow, grid, dim3(kThreads), sizeof(OneRowMemory), o, conv, static_cast<int>(heads));
  return true;
}

}  // namespace bamba::cuda
