// Convolution and scan of sequences of one row on Hopper, with the numbers of conv.cu and ssd_chunks.cu: the same sums, and the same products of 16 in the same
// order. It is bound by reading the state. A block has a head and goes along sequences; a warp of its own brings what their slots hold to shared memory, of the
// next one while one is computed. Three warps compute the convolution of the row, decays and weights, the others have 16 rows of S each.
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
constexpr int kStateWarps = 4, kRowWarps = 3, kThreads = (kStateWarps + kRowWarps + 1) * 32;
[[maybe_unused]] constexpr int kInputThreads = (kHeadDim + 2 * kState) / 4;  // of the row warps, with four of the row's x | B | C each
constexpr int kStages = 2, kResident = 2;                                    // sequences on their way, blocks on a multiprocessor
// Distances in shared memory: so that rows which are read together lie in different banks. Four rows of S lie one after the other, 32 bytes after the four
// before.
constexpr int kFourRows = 4 * kState + 8, kBRow = kState + 8, kXRow = kHeadDim + 8;

struct OneRowMemory {
  // What a slot holds: S at the chunk's start, the chunk's inputs.
  struct Stage {
    float states[kHeadDim / 4 * kFourRows];
    bf16 b[kChunk * kBRow], x[kChunk * kXRow];
  };
  // What is computed of a row: its own inputs, how S decays up to it, and the tokens' contributions; and the weights of their x in y, of two tokens each:
  // leading bits and the rest.
  struct alignas(16) Row {
    bf16 b[kState], c[kState], x[kHeadDim];
    float decayed_steps[kChunk];
    uint2 weights[kChunk / 2];
    float from_start;
  };
  Stage stages[kStages];
  Row rows[kStages];
  uint64_t landed[kStages], known[kStages], weighted[kStages], empty[kStages];  // the stage; the row but for the weights; these; all has been used
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
#endif

__global__ void __launch_bounds__(kThreads, kResident)
    ConvScanRow(const __grid_constant__ ScanOperands<bf16> o, const __grid_constant__ ConvOperands conv, int count) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(16) char shared[];
  OneRowMemory& memory = *reinterpret_cast<OneRowMemory*>(shared);
  const uint32_t at = SharedAddress(shared);
  const auto landed = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, landed) + n % kStages * 8); };
  const auto known = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, known) + n % kStages * 8); };
  const auto weighted = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, weighted) + n % kStages * 8); };
  const auto empty = [&](int n) { return at + static_cast<uint32_t>(offsetof(OneRowMemory, empty) + n % kStages * 8); };
  const auto round = [](int n) { return n / kStages & 1; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++)
      InitBarrier(landed(i), 1 + 32), InitBarrier(known(i), kRowWarps), InitBarrier(weighted(i), 2), InitBarrier(empty(i), kStateWarps + 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  LetNextBegin();
  __syncthreads();
  const int head = blockIdx.x, over = gridDim.y, lane = threadIdx.x % 32, warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), g = lane / 4,
            q = lane % 4;
  const int group = o.GroupOf(head), x_column = head * kHeadDim, b_column = o.b_column + group * kState, c_column = o.c_column + group * kState;
  const auto arrive = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) Arrive(barrier);
  };
  const auto token_of = [](const DeviceSequence& s) { return static_cast<int>(static_cast<uint32_t>(s.position) % kChunk); };  // within its chunk
  DeviceSequence next = o.sequences[blockIdx.y];
  const auto take = [&](int i) {  // number i, and asks for the one after it
    const DeviceSequence s = next;
    if (i + over < count) next = o.sequences[i + over];
    return s;
  };

  if (warp == kStateWarps + kRowWarps) {
    uint64_t once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    for (int i = blockIdx.y, n = 0; i < count; i += over, n++) {
      const DeviceSequence s = take(i);
      const int t = token_of(s);
      const int64_t begin = s.position - t;
      const uint32_t stage = at + static_cast<uint32_t>(n % kStages * sizeof(OneRowMemory::Stage));
      if (n >= kStages) WaitFor(empty(n), round(n) ^ 1);
      if (lane == 0) ArriveForBytes(landed(n), begin > 0 ? kHeadDim * kState * 4 : 0);
      __syncwarp();
      if (begin > 0 && lane < kHeadDim / 4)
        CopyBytes(stage + lane * kFourRows * 4, o.Boundary(s, begin, head) + lane * 4 * kState, 4 * kState * 4, landed(n), once);
      const auto kept_inputs = [&](int columns, int column, size_t offset, int distance) {
        const int units = columns / 8, rows = 32 / units;  // of a row; that the warp copies at a time
        const bf16* from = o.KeptRow(s, begin) + lane / units * o.xbc_token + column + lane % units * 8;
        uint32_t to = stage + static_cast<uint32_t>(offset) + (lane / units * distance + lane % units * 8) * 2;
#pragma unroll 4
        for (int first = 0; first < t; first += rows, from += rows * o.xbc_token, to += rows * distance * 2)
          if (first + lane / units < t) CopyAsync(to, from, true);
      };
      if (t > 0)
        kept_inputs(kState, b_column, offsetof(OneRowMemory::Stage, b), kBRow), kept_inputs(kHeadDim, x_column, offsetof(OneRowMemory::Stage, x), kXRow);
      ArriveAfterCopies(landed(n));
    }
    WaitForPrevious();
    return;
  }

  if (warp >= kStateWarps) {
    const HeadNumbers numbers = NumbersOf(o, head);
    const int thread = static_cast<int>(threadIdx.x) - kStateWarps * 32;
    const bool has_input = thread < kInputThreads, keeps_input = has_input && (thread < 16 || head == group * o.heads_per_group);
    const int of_its = thread < 16 ? thread * 4 : thread < 48 ? (thread - 16) * 4 : (thread - 48) * 4;  // x, B or C
    const int column = has_input ? (thread < 16 ? x_column : thread < 48 ? b_column : c_column) + of_its : 0;
    const bool decays = warp == kStateWarps + kRowWarps - 1;  // this warp computes them
    float4 taps[4];
    float start[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      taps[c] = *reinterpret_cast<const float4*>(conv.w + (column + c) * kTaps);
      start[c] = conv.bias != nullptr ? conv.bias[column + c] : 0;
    }
    // The inputs of the four channels, oldest first; of lane i of the decays' warp the raw step of token i.
    uint2 inputs[kTaps];
    bf16 raw_step;
    const auto read_kept = [&](const DeviceSequence& s) {
      const int t = token_of(s);
      const int entry = conv.ring != nullptr ? static_cast<int>(EntryOf(static_cast<uint32_t>(s.position), conv.length)) : 0;
      const bf16* const ring = conv.ring + s.slot * conv.slot + column;
#pragma unroll
      for (int k = 0; k < kTaps - 1; k++) {
        const int back = entry - (kTaps - 1) + k;
        inputs[k] = make_uint2(0, 0);
        if (s.position >= kTaps - 1 - k)
          inputs[k] = *reinterpret_cast<const uint2*>(ring + (back < 0 ? back + static_cast<int>(conv.length) : back) * conv.token);
      }
      if (decays && lane < t) raw_step = o.KeptSteps(s, s.position - t)[lane * o.dt_token + head];
    };
    const auto read_own = [&](const DeviceSequence& s) {
      inputs[kTaps - 1] = *reinterpret_cast<const uint2*>(conv.x.Row(s.row) + column);
      if (decays && lane == token_of(s)) raw_step = o.dt.Row(s.row)[head];
    };
    read_kept(next);
    WaitForPrevious();
    read_own(next);
    for (int i = blockIdx.y, n = 0; i < count; i += over, n++) {
      const DeviceSequence s = take(i);
      const int t = token_of(s);
      const bool kept = o.Keeps(s);
      OneRowMemory::Row& row = memory.rows[n % kStages];
      if (n >= kStages) WaitFor(empty(n), round(n) ^ 1);
      if (decays) {
        // Lane i: token i's step, and the log of the decay from the chunk's start.
        const float step = lane <= t ? StepOf(ToFloat(raw_step), numbers.bias, o.dt_min, o.dt_max) : 0;
        float log = lane <= t ? LogDecay(step, numbers.rate) : 0;
        if (kept && lane == t) o.KeptSteps(s, s.position)[head] = raw_step;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const float before = __shfl_up_sync(~0u, log, distance);
          if (lane >= distance) log += before;
        }
        const float log_row = __shfl_sync(~0u, log, t);
        row.decayed_steps[lane] = lane <= t ? FastExp2(log_row - log) * step : 0;
        if (lane == 0) row.from_start = FastExp2(log_row);
      }
      if (has_input) {
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
        const uint2 own = make_uint2(PackPair(sum[0], sum[1]), PackPair(sum[2], sum[3]));
        *reinterpret_cast<uint2*>((thread < 16 ? row.x : thread < 48 ? row.b : row.c) + of_its) = own;
        if (keeps_input && kept) {  // no block of this launch reads these entries
          *reinterpret_cast<uint2*>(o.KeptRow(s, s.position) + column) = own;
          *reinterpret_cast<uint2*>(conv.Kept(s, s.position) + column) = inputs[kTaps - 1];
        }
      }
      arrive(known(n));
      if (i + over < count) read_kept(next), read_own(next);
      if (decays) continue;
      // Each of the other two: scores of 16 tokens, {g, g + 8} of them in each column.
      const int first = (warp - kStateWarps) * 16;
      WaitFor(known(n), round(n));
      WaitFor(landed(n), round(n));
      float score[4] = {};
      if (first <= t) {
        const int token = first + lane % 16;
        const uint32_t b_at = SharedAddress((token == t ? row.b : memory.stages[n % kStages].b + token * kBRow) + lane / 16 * 8);
#pragma unroll
        for (int k = 0; k < kState / 16; k++) {
          uint32_t b[4];
          LoadMatrices(b, b_at + 32 * k);
          MultiplyAdd(score, b, *reinterpret_cast<const uint32_t*>(row.c + 16 * k + 2 * q), *reinterpret_cast<const uint32_t*>(row.c + 16 * k + 8 + 2 * q));
        }
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = first + 8 * half + g;
        const float weight = token <= t ? score[2 * half] * row.decayed_steps[token] : 0, following = __shfl_down_sync(~0u, weight, 4);
        uint2 split;
        SplitPair(weight, following, split.x, split.y);
        if (lane % 8 == 0) row.weights[token / 2] = split;
      }
      arrive(weighted(n)), arrive(empty(n));
    }
    return;
  }

  // A warp has 16 rows of S, as a product's first operand; the row's C is each of the second one's eight columns. Row r of the product is row 4 (r mod 4) + r /
  // 4 of the warp's, so that those which are read together lie in different fours.
  const float d = o.d[head];
  WaitForPrevious();
  for (int i = blockIdx.y, n = 0; i < count; i += over, n++) {
    const DeviceSequence s = take(i);
    const int t = token_of(s);
    const int64_t begin = s.position - t;
    const OneRowMemory::Stage& stage = memory.stages[n % kStages];
    const OneRowMemory::Row& row = memory.rows[n % kStages];
    WaitFor(landed(n), round(n));
    WaitFor(known(n), round(n));
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
        MultiplyAdd(outer, carried, *reinterpret_cast<const uint32_t*>(row.c + 16 * k + 2 * q), *reinterpret_cast<const uint32_t*>(row.c + 16 * k + 8 + 2 * q));
      }
    }
    // Of tokens 16 k + 2 q, the next, and 8 further; what lies beyond the row is another sequence's.
    uint32_t x[2][4];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int token = 16 * k + lane % 8 + lane / 16 * 8;
      LoadTransposed(x[k], SharedAddress((token == t ? row.x : stage.x + token * kXRow) + (warp * 2 + lane / 8 % 2) * 8));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int first = 16 * k + 8 * half + 2 * q;
        const uint32_t there = first < t ? ~0u : first == t ? 0xffffu : 0;
        x[k][2 * half] &= there, x[k][2 * half + 1] &= there;
      }
    }
    WaitFor(weighted(n), round(n));
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
      if (q == 0) o.y.Row(s.row)[x_column + p] = FromFloat<bf16>(fmaf(d, ToFloat(row.x[p]), fmaf(from_start, from < 8 ? low : high, inner[2 * half])));
    }
    if (t == kChunk - 1 && o.Keeps(s)) {
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
          LoadTransposed(b, SharedAddress((token == t ? row.b : stage.b + token * kBRow) + (i + lane / 16) * 8));
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
    arrive(empty(n));
  }
#endif
}

}  // namespace

bool ConvScanOneRow(State& device, const ScanOperands<bf16>& o, const ConvOperands& conv, int64_t count) {
  // As many blocks as there is room for at once, with equal shares. Of long ones the kernel for one sequence a block reads more of the bandwidth.
  constexpr int64_t kMostShare = 32;
  const int64_t room = std::max<int64_t>(1, int64_t{kResident} * device.sms() / o.heads), share = DivideUp(count, std::min(room, count));
  if (!device.hopper() || share > kMostShare) return false;
  const dim3 grid(static_cast<unsigned>(o.heads), static_cast<unsigned>(DivideUp(count, share)));
  Launch(device, ConvScanRow, grid, dim3(kThreads), sizeof(OneRowMemory), o, conv, static_cast<int>(count));
  return true;
}

}  // namespace bamba::cuda
