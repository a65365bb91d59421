// The scan chunk by chunk on Hopper, for heads of 64 with a state of 128 in bf16: as ssd_chunks.cu, with products of warpgroups (wgmma). A warp of its own
// brings the chunks' inputs to shared memory and computes the decays; a warpgroup computes the weights of x. The others each keep the state of a head in
// registers, the accumulators of its products, along the whole sequence: only these products follow each other from chunk to chunk.
// The numbers are ssd_chunks.cu's: products of 16, in the same order.
#include <cstddef>

#include "ops/cuda/ssd.cuh"
#include "ops/cuda/ssd_tensor.cuh"
#include "ops/cuda/tensor_map.cuh"
#include "ops/cuda/wgmma.cuh"

namespace bamba::cuda {
namespace {

[[maybe_unused]] constexpr int kHeadDim = 64, kState = 128;
constexpr int kStages = 4;
// Shared memory holds rows of 128 bytes: 64 numbers. 16-byte unit u of row r lies at unit u ^ (r mod 8), as wgmma's 128-byte swizzle has it. B and C are two
// such matrices each, one after the other.
constexpr int kRow = 128, kMatrix = kChunk * kRow;

// Of one head and chunk, by token.
struct Decays {
  float log[kChunk];         // log2 of the decay from the chunk's start up to and with the token
  float step[kChunk];        // dt
  float from_start[kChunk];  // decay from the chunk's start up to and with the token
  float to_end[kChunk];      // decay from the token to the chunk's end · dt
};

template <int kHeads>
struct HopperMemory {
  struct Stage {
    char b[2 * kMatrix], c[2 * kMatrix], x[kHeads][kMatrix];
    char weights[kHeads][kMatrix];  // [t][s], leading bits and then the rest
  };
  Stage stages[kStages];
  char y[kHeads * 4][kChunk * 32];  // of a warp: 16 columns of each token
  Decays decays[kStages][kHeads];
  uint64_t landed[kStages], full[kStages], empty[kStages];  // the inputs and decays have come; the weights too; all have been used
};
template <int kHeads>
constexpr size_t kSharedBytes = sizeof(HopperMemory<kHeads>) + 1024;  // 1024: to align it

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Four matrices of LoadTransposed, the other way.
__device__ __forceinline__ void StoreTransposed(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}
__device__ __forceinline__ uint32_t Place(int row, int unit) { return cuda::Place(row, unit, kRow); }
#endif

template <int kHeads>
constexpr int kThreads = 128 * (kHeads + 2);

// Block (kHeads heads of one group, sequence).
template <int kHeads>
__global__ void __launch_bounds__(kThreads<kHeads>, 1) HopperChunks(const __grid_constant__ CUtensorMap map, const __grid_constant__ ScanOperands<bf16> o,
                                                                    const __grid_constant__ Picked picked) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Memory = HopperMemory<kHeads>;
  using Stage = typename Memory::Stage;
  static_assert(sizeof(Stage) % 1024 == 0 && offsetof(Memory, stages) == 0);
  extern __shared__ char unaligned[];
  const uint32_t shared = (SharedAddress(unaligned) + 1023) / 1024 * 1024;
  Memory& memory = *reinterpret_cast<Memory*>(unaligned + (shared - SharedAddress(unaligned)));
  const auto landed = [&](int chunk) { return shared + static_cast<uint32_t>(offsetof(Memory, landed) + chunk % kStages * 8); };
  const auto full = [&](int chunk) { return shared + static_cast<uint32_t>(offsetof(Memory, full) + chunk % kStages * 8); };
  const auto empty = [&](int chunk) { return shared + static_cast<uint32_t>(offsetof(Memory, empty) + chunk % kStages * 8); };
  const auto round = [](int chunk) { return chunk / kStages & 1; };
  const auto stage_at = [&](int chunk) { return shared + static_cast<uint32_t>(chunk % kStages) * static_cast<uint32_t>(sizeof(Stage)); };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) InitBarrier(landed(i), 1 + 32), InitBarrier(full(i), 64), InitBarrier(empty(i), kHeads * 128);
    PublishBarriers();
  }
  LetNextBegin();
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0), thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int first_head = blockIdx.x * kHeads, own_head = first_head + (warpgroup < kHeads ? warpgroup : 0);
  __syncthreads();
  WaitForPrevious();

  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  if (s.rows == 0) return;
  // Tokens are counted from the first one's chunk: those up to `known` came before this call, `count` is one past the last.
  const int known = static_cast<int>(s.position % kChunk), count = known + s.rows, first_row = s.row - known, chunks = (count + kChunk - 1) / kChunk;
  const int64_t begin = s.position - known, end = s.position + s.rows;
  const int g = lane / 4, q = lane % 4;

  if (warpgroup == kHeads + 1) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(40));
    static_assert(kStages == 4, "a warp for each");
    const int group = o.GroupOf(first_head), b_column = o.b_column + group * kState, c_column = o.c_column + group * kState, x_column = first_head * kHeadDim;
    HeadNumbers numbers[kHeads];
#pragma unroll
    for (int head = 0; head < kHeads; head++) numbers[head] = NumbersOf(o, first_head + head);
    const auto raw_steps = [&](int chunk, float(&raw)[kHeads]) {
      const int token = chunk * kChunk + lane;
#pragma unroll
      for (int head = 0; head < kHeads; head++) raw[head] = token < count ? o.RawStep(s, begin + token, first_head + head) : 0.0f;
    };
    float raw[kHeads];
    raw_steps(warp, raw);
#pragma unroll 1
    for (int chunk = warp; chunk < chunks; chunk += kStages) {
      WaitFor(empty(chunk), round(chunk) ^ 1);
      const uint32_t at = stage_at(chunk);
      if ((chunk > 0 || known == 0) && (chunk + 1) * kChunk <= count) {
        if (lane == 0) {
          const int row = first_row + chunk * kChunk;
          ArriveForBytes(landed(chunk), (4 + kHeads) * kMatrix);
#pragma unroll
          for (int i = 0; i < 2; i++) {
            CopyBox(at + i * kMatrix, &map, landed(chunk), b_column + 64 * i, row);
            CopyBox(at + offsetof(Stage, c) + i * kMatrix, &map, landed(chunk), c_column + 64 * i, row);
          }
#pragma unroll
          for (int head = 0; head < kHeads; head++) CopyBox(at + offsetof(Stage, x) + head * kMatrix, &map, landed(chunk), x_column + head * kHeadDim, row);
        }
      } else {
        // The first rows may be kept ones, the last ones not there; of C, the kept ones aren't needed.
        const bf16* const kept = known > 0 ? o.KeptRow(s, begin) : nullptr;
#pragma unroll 1
        for (int i = lane; i < kChunk * 8; i += 32) {
          const int row = i / 8, unit = i % 8, token = chunk * kChunk + row;
          const bf16* const from = (token < known ? kept + token * o.xbc_token : o.xbc.Row(first_row + (token < count ? token : count - 1))) + unit * 8;
          const uint32_t to = at + Place(row, unit);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            CopyAsync(to + half * kMatrix, from + b_column + half * 64, token < count);
            CopyAsync(to + offsetof(Stage, c) + half * kMatrix, from + c_column + half * 64, token < count && token >= known);
          }
#pragma unroll
          for (int head = 0; head < kHeads; head++) CopyAsync(to + offsetof(Stage, x) + head * kMatrix, from + x_column + head * kHeadDim, token < count);
        }
        CommitCopies();
        WaitForCopies<0>();
        FenceForProducts();
        if (lane == 0) Arrive(landed(chunk));
      }
      const bool there = chunk * kChunk + lane < count;
#pragma unroll
      for (int head = 0; head < kHeads; head++) {
        const float step = there ? StepOf(raw[head], numbers[head].bias, o.dt_min, o.dt_max) : 0;
        float log = there ? LogDecay(step, numbers[head].rate) : 0;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const float before = __shfl_up_sync(~0u, log, distance);
          if (lane >= distance) log += before;
        }
        Decays& to = memory.decays[chunk % kStages][head];
        to.log[lane] = log, to.step[lane] = step, to.from_start[lane] = FastExp2(log);
        to.to_end[lane] = FastExp2(__shfl_sync(~0u, log, 31) - log) * step;
      }
      Arrive(landed(chunk));
      raw_steps(chunk + kStages, raw);
    }
    return;
  }

  if (warpgroup == kHeads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(72));
    // Two warps take a chunk, each 16 columns of its scores. What this lane names of the 8x8 matrices: rows [0, 16) of C and one of two units; eight of 16 rows
    // of B and one of two units.
    const int part = warp % 2;
    const uint32_t c_at = offsetof(Stage, c) + Place(lane % 16, lane / 16), b_at = Place(part * 16 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll 1
    for (int chunk = warp / 2; chunk < chunks; chunk += 2) {
      const uint32_t at = stage_at(chunk);
      WaitFor(landed(chunk), round(chunk));
      float score[2][2][4] = {};
#pragma unroll
      for (int k = 0; k < kState / 16; k++) {
        uint32_t b[4];
        LoadMatrices(b, ((at + b_at) ^ 32 * (k % 4)) + k / 4 * kMatrix);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          uint32_t c[4];
          LoadMatrices(c, ((at + c_at) ^ 32 * (k % 4)) + k / 4 * kMatrix + m * 16 * kRow);
#pragma unroll
          for (int n = 0; n < 2; n++) MultiplyAdd(score[m][n], c, b[2 * n], b[2 * n + 1]);
        }
      }
#pragma unroll
      for (int head = 0; head < kHeads; head++) {
        const Decays& d = memory.decays[chunk % kStages][head];
        char* const to = memory.stages[chunk % kStages].weights[head] + q * 4;
        float log[2][2];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int r = 0; r < 2; r++) log[m][r] = d.log[16 * m + 8 * r + g];
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int unit = part * 2 + n, from = unit * 8 + 2 * q;
          const float2 log_from = *reinterpret_cast<const float2*>(d.log + from), step = *reinterpret_cast<const float2*>(d.step + from);
#pragma unroll
          for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
              const int t = 16 * m + 8 * r + g;
              const float low = from <= t ? score[m][n][2 * r] * (FastExp2(log[m][r] - log_from.x) * step.x) : 0;
              const float high = from + 1 <= t ? score[m][n][2 * r + 1] * (FastExp2(log[m][r] - log_from.y) * step.y) : 0;
              uint32_t leading, rest;
              SplitPair(low, high, leading, rest);
              *reinterpret_cast<uint32_t*>(to + Place(t, unit)) = leading, *reinterpret_cast<uint32_t*>(to + Place(t, unit + 4)) = rest;
            }
        }
      }
      FenceForProducts();
      Arrive(full(chunk));
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(200));
  const float skip = o.d[own_head];
  const int state_offset = (warp * 16 + g) * kState + 2 * q;
  float state[64];  // 4 i + {0, 1}: columns 8 i + 2 q + {0, 1} of row 16 warp + g; + {2, 3}: of row g + 8
  if (begin > 0) {
    const float* from = o.Boundary(s, begin, own_head) + state_offset;
#pragma unroll
    for (int i = 0; i < kState / 8; i++) {
      const float2 low = __ldcs(reinterpret_cast<const float2*>(from + 8 * i)), high = __ldcs(reinterpret_cast<const float2*>(from + 8 * kState + 8 * i));
      state[4 * i] = low.x, state[4 * i + 1] = low.y, state[4 * i + 2] = high.x, state[4 * i + 3] = high.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 64; i++) state[i] = 0;
  }
  float outer[16], inner[16];  // of yᵀ: 4 i + {0, 1}: tokens 8 i + 2 q + {0, 1}, rows as above
#pragma unroll
  for (int i = 0; i < 16; i++) outer[i] = inner[i] = 0;
  const uint32_t x_at = offsetof(Stage, x) + warpgroup * kMatrix + Place(lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2);
  const uint32_t y_at = shared + static_cast<uint32_t>(offsetof(Memory, y)) + (warpgroup * 4 + warp) * kChunk * 32;
  const auto y_place = [](int token, int unit) { return static_cast<uint32_t>(token * 32 + ((unit ^ (token / 4 & 1)) << 4)); };
  const uint32_t y_store = y_at + y_place(lane / 16 * 8 + lane % 8, lane / 8 % 2), y_load = y_at + y_place(lane / 2, lane % 2);
  bf16* y_row = o.y.data + static_cast<int64_t>(first_row + lane / 2) * o.y.stride + own_head * kHeadDim + warp * 16 + lane % 2 * 8;

#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    const uint32_t at = stage_at(chunk);
    const uint64_t c = Describe(at + offsetof(Stage, c)), b = Describe(at, kMatrix);
    const uint64_t w = Describe(at + static_cast<uint32_t>(offsetof(Stage, weights)) + warpgroup * kMatrix);
    const Decays& decays = memory.decays[chunk % kStages][warpgroup];
    uint32_t carried[kState / 16][4];
#pragma unroll
    for (int k = 0; k < kState / 16; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) carried[k][i] = PackPair(state[8 * k + 2 * i], state[8 * k + 2 * i + 1]);
    WaitFor(landed(chunk), round(chunk));
    const float decay = decays.from_start[kChunk - 1];
#pragma unroll
    for (int i = 0; i < 64; i++) state[i] *= decay;
    Pin(carried), Pin(outer);
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kState / 16; k++) MultiplyRows(outer, carried[k], c + static_cast<uint64_t>((k / 4 * kMatrix + k % 4 * 32) >> 4), k > 0);
    CommitProducts();

    uint32_t x[2][4], leading[2][4], rest[2][4];  // xᵀ: rows 16 warp + {g, g + 8}, tokens 16 k + 2 q + {0, 1, 8, 9}; and weighted
#pragma unroll
    for (int k = 0; k < 2; k++) LoadTransposed(x[k], at + x_at + k * 16 * kRow);
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 weight = *reinterpret_cast<const float2*>(decays.to_end + 16 * k + 8 * half + 2 * q);
#pragma unroll
        for (int r = 2 * half; r < 2 * half + 2; r++) SplitPair(weight.x * LowHalf(x[k][r]), weight.y * HighHalf(x[k][r]), leading[k][r], rest[k][r]);
      }
    WaitFor(full(chunk), round(chunk));
    Pin(x), Pin(leading), Pin(rest), Pin(state), Pin(inner);
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 2; k++) {
      MultiplyRows(inner, x[k], w + 2 * k, k > 0);
      MultiplyRows(inner, x[k], w + 2 * k + 4, 1);
    }
    CommitProducts();
#pragma unroll
    for (int k = 0; k < 2; k++) {
      MultiplyColumns(state, leading[k], b + static_cast<uint64_t>((k * 16 * kRow) >> 4));
      MultiplyColumns(state, rest[k], b + static_cast<uint64_t>((k * 16 * kRow) >> 4));
    }
    CommitProducts();
    WaitForProducts<1>();
    Pin(outer), Pin(inner), Pin(carried), Pin(x);

    uint32_t pairs[4][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 from_start = *reinterpret_cast<const float2*>(decays.from_start + 8 * i + 2 * q);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const uint32_t own = x[i / 2][i % 2 * 2 + r];
        pairs[i][r] = PackPair(fmaf(skip, LowHalf(own), fmaf(from_start.x, outer[4 * i + 2 * r], inner[4 * i + 2 * r])),
                               fmaf(skip, HighHalf(own), fmaf(from_start.y, outer[4 * i + 2 * r + 1], inner[4 * i + 2 * r + 1])));
      }
    }
    __syncwarp();
    StoreTransposed(y_store, pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]);
    StoreTransposed(y_store + 16 * 32, pairs[2][0], pairs[2][1], pairs[3][0], pairs[3][1]);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int token = chunk * kChunk + lane / 2 + 16 * j;
      uint4 out;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "r"(y_load + j * 16 * 32) : "memory");
      if (token >= known && token < count) *reinterpret_cast<uint4*>(y_row + 16 * j * o.y.stride) = out;
    }
    y_row += kChunk * o.y.stride;

    WaitForProducts<0>();
    Pin(state), Pin(leading), Pin(rest);
    Arrive(empty(chunk));
    const int64_t next = begin + static_cast<int64_t>(chunk + 1) * kChunk;
    if (next <= end && o.KeepsBoundary(s, next, end)) {
      float* to = o.Boundary(s, next, own_head) + state_offset;
#pragma unroll
      for (int i = 0; i < kState / 8; i++) {
        *reinterpret_cast<float2*>(to + 8 * i) = make_float2(state[4 * i], state[4 * i + 1]);
        *reinterpret_cast<float2*>(to + 8 * kState + 8 * i) = make_float2(state[4 * i + 2], state[4 * i + 3]);
      }
    }
  }
#endif
}

template <int kHeads>
void LaunchHopper(State& device, const ScanOperands<bf16>& o, const Picked& picked, int64_t count) {
  // Boxes of a chunk's rows by 64 columns. Fewer rows are not copied that way.
  CUtensorMap map = {};
  if (o.rows >= kChunk) map = TensorMap(o.xbc.data, {{o.columns, 1, 64}, {o.rows, o.xbc.stride, kChunk}}, 256);
  Launch(device, HopperChunks<kHeads>, dim3(static_cast<unsigned>(o.heads / kHeads), static_cast<unsigned>(count)), dim3(kThreads<kHeads>), kSharedBytes<kHeads>,
         map, o, picked);
}

}  // namespace

bool ScanChunksOnHopper(State& device, const ScanOperands<bf16>& o, const Picked& picked, int64_t count) {
  if (!HasTensorMaps(device)) return false;
  // Two heads share B, C and their products; but few sequences make too few blocks of them.
  const bool two = o.heads_per_group % 2 == 0 && o.heads * count >= 2 * device.sms();
  two ? LaunchHopper<2>(device, o, picked, count) : LaunchHopper<1>(device, o, picked, count);
  return true;
}

}  // namespace bamba::cuda
