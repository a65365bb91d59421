// The scan chunk by chunk on the tensor cores, for heads of 64 with a state of 128 in bf16. Per chunk, with decays a and G = C Bᵀ:
//   Y = diag(a from the chunk's start) C Sᵀ + (G ∘ a(s, t) dt_s) X + D X       S ← a S + (a to the chunk's end · dt_s x_s)ᵀ B
// A warp keeps 16 rows of a head's S in registers, in the products' accumulators, along the whole sequence; rounded to bf16 they are C Sᵀ's second operand. The
// weights of X are two bf16 numbers each, the leading 8 bits and the next 8, in both products: so nothing that stays is rounded to 8 bits. Where terms are
// independent, an output errs by at most √2 of what rounding it to bf16 does.
// A row's numbers are those of the same products with the same operands whatever other rows the call has: absent ones are zeros.
#include <cstddef>

#include "ops/cuda/ssd.cuh"
#include "ops/cuda/ssd_tensor.cuh"

namespace bamba::cuda {
namespace {

constexpr int kHeadDim = 64, kState = 128;
constexpr int kStateBytes = kState * 2, kXBytes = kHeadDim * 2;             // of a token's B or C, and of a head's x
constexpr int kRestBytes = kChunk * 2, kWeightBytes = 2 * kRestBytes + 16;  // of a row of weights, leading and rest: eight rows lie in different banks

// Of one head and chunk, by token.
struct Decays {
  float log[kChunk];     // log2 of the decay from the chunk's start up to and with the token
  float step[kChunk];    // dt
  float to_end[kChunk];  // decay from the token to the chunk's end · dt
};

template <int kHeads>
struct ChunkMemory {
  static constexpr int kStages = 3;
  struct Stage {
    char b[kChunk * kStateBytes], c[kChunk * kStateBytes], x[kChunk * kHeads * kXBytes];
  };
  Stage stages[kStages];
  char weights[kHeads][kChunk * kWeightBytes];  // [t][s]
  Decays decays[2][kHeads];
};

// Block (kHeads heads of one group, sequence); four warps for each head.
template <int kHeads>
__global__ void __launch_bounds__(128 * kHeads, 2) Chunks(ScanOperands<bf16> o, Picked picked) {
  static_assert(kHeads == 1 || kHeads == 2);
  constexpr int kThreads = 128 * kHeads, kXRow = kHeads * kXBytes;
  constexpr int kTiles = kChunk / 16;
  using Memory = ChunkMemory<kHeads>;
  using Stage = typename Memory::Stage;
  extern __shared__ __align__(1024) char shared[];
  Memory& memory = *reinterpret_cast<Memory*>(shared);
  LetNextBegin();

  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, q = lane % 4;
  const int first_head = blockIdx.x * kHeads, own = warp / 4, head = first_head + own, part = warp % 4;  // rows [16 part, 16 part + 16) of the head's S
  // The first four warps compute G, eight columns each; the last ones look after the next chunk's decays.
  const bool steps_warp = kHeads == 1 ? warp == 3 : warp >= 6;
  const int steps_of = kHeads == 1 ? 0 : warp & 1;
  const HeadNumbers steps_numbers = NumbersOf(o, first_head + steps_of);
  const float skip = o.d[head];
  WaitForPrevious();

  const DeviceSequence s = o.sequences[picked(blockIdx.y)];
  if (s.rows == 0) return;
  // Tokens are counted from the first one's chunk: those up to `known` came before this call, `count` is one past the last.
  const int known = static_cast<int>(s.position % kChunk), count = known + s.rows, first_row = s.row - known;
  const int64_t begin = s.position - known, end = s.position + s.rows;
  const int group = o.GroupOf(first_head);
  const int x_column = first_head * kHeadDim, b_column = o.b_column + group * kState, c_column = o.c_column + group * kState;
  const int y_stride = static_cast<int>(o.y.stride);

  float state[kState / 8][4];  // element [8 i + 2 q + {0, 1}] of rows g and g + 8
  const int state_offset = (part * 16 + g) * kState + 2 * q;
  if (begin > 0) {
    const float* from = o.Boundary(s, begin, head) + state_offset;
#pragma unroll
    for (int i = 0; i < kState / 8; i++) {
      const float2 low = __ldcs(reinterpret_cast<const float2*>(from + 8 * i)), high = __ldcs(reinterpret_cast<const float2*>(from + 8 * kState + 8 * i));
      state[i][0] = low.x, state[i][1] = low.y, state[i][2] = high.x, state[i][3] = high.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kState / 8; i++) state[i][0] = state[i][1] = state[i][2] = state[i][3] = 0;
  }

  // A thread copies one unit of some rows of B and C, and one of some rows of x. The first chunk's may be kept ones.
  constexpr int kUnits = kXRow / 16, kRowsAtOnce = kThreads / 16, kXRowsAtOnce = kThreads / kUnits;
  static_assert(kRowsAtOnce % 8 == 0 && kXRowsAtOnce % 8 == 0);
  const int copy_row = tid / 16, copy_x_row = tid / kUnits;
  const uint32_t shared_base = SharedAddress(shared);
  const uint32_t copy_to = shared_base + Place(copy_row, tid % 16, kStateBytes), copy_x_to = shared_base + Place(copy_x_row, tid % kUnits, kXRow);
  constexpr uint32_t kToC = offsetof(Stage, c), kToX = offsetof(Stage, x);
  const int64_t from_b = b_column + tid % 16 * 8, b_to_c = c_column - b_column, from_x = x_column + tid % kUnits * 8;
  const bf16* const kept_rows = known > 0 ? o.KeptRow(s, begin) : nullptr;
  const auto load_first = [&] {
#pragma unroll
    for (int i = 0; i < kChunk / kRowsAtOnce; i++) {
      const int r = copy_row + i * kRowsAtOnce;
      const bf16* from = (r < known ? kept_rows + r * o.xbc_token : o.xbc.Row(first_row + (r < count ? r : known))) + from_b;
      CopyAsync(copy_to + i * kRowsAtOnce * kStateBytes, from, r < count);
      CopyAsync(copy_to + kToC + i * kRowsAtOnce * kStateBytes, from + b_to_c, r < count && r >= known);
    }
#pragma unroll
    for (int i = 0; i < kChunk / kXRowsAtOnce; i++) {
      const int r = copy_x_row + i * kXRowsAtOnce;
      const bf16* from = (r < known ? kept_rows + r * o.xbc_token : o.xbc.Row(first_row + (r < count ? r : known))) + from_x;
      CopyAsync(copy_x_to + kToX + i * kXRowsAtOnce * kXRow, from, r < count);
    }
  };
  // Later ones follow each other. What lies behind the last row is not touched.
  const bf16 *next_b = o.xbc.data + (first_row + kChunk + copy_row) * o.xbc.stride + from_b,
             *next_x = o.xbc.data + (first_row + kChunk + copy_x_row) * o.xbc.stride + from_x;
  const auto load = [&](int base, int stage) {
    const uint32_t at = stage * static_cast<uint32_t>(sizeof(Stage));
#pragma unroll
    for (int i = 0; i < kChunk / kRowsAtOnce; i++) {
      const bf16* from = next_b + i * kRowsAtOnce * o.xbc.stride;
      const bool there = base + copy_row + i * kRowsAtOnce < count;
      CopyAsync(copy_to + at + i * kRowsAtOnce * kStateBytes, from, there);
      CopyAsync(copy_to + at + kToC + i * kRowsAtOnce * kStateBytes, from + b_to_c, there);
    }
#pragma unroll
    for (int i = 0; i < kChunk / kXRowsAtOnce; i++)
      CopyAsync(copy_x_to + at + kToX + i * kXRowsAtOnce * kXRow, next_x + i * kXRowsAtOnce * o.xbc.stride, base + copy_x_row + i * kXRowsAtOnce < count);
    next_b += kChunk * o.xbc.stride, next_x += kChunk * o.xbc.stride;
  };
  const auto raw_step = [&](int base) { return base + lane < count ? o.RawStep(s, begin + base + lane, first_head + steps_of) : 0.0f; };
  const auto take_steps = [&](int base, float raw, Decays& to) {
    const bool there = base + lane < count;
    const float step = there ? StepOf(raw, steps_numbers.bias, o.dt_min, o.dt_max) : 0;
    float log = there ? LogDecay(step, steps_numbers.rate) : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float before = __shfl_up_sync(~0u, log, distance);
      if (lane >= distance) log += before;
    }
    to.log[lane] = log, to.step[lane] = step;
    to.to_end[lane] = FastExp2(__shfl_sync(~0u, log, 31) - log) * step;
  };

  load_first();
  CommitCopies();
  if (kChunk < count) load(kChunk, 1);
  CommitCopies();
  float raw_next = 0;
  if (steps_warp) {
    const float raw = raw_step(0);
    raw_next = raw_step(kChunk);
    take_steps(0, raw, memory.decays[0][steps_of]);
  }

  // What this lane names of the 8x8 matrices: rows [0, 16) of C or B and one of two units; eight rows of B and one of four units, for G; eight or sixteen rows
  // of x.
  const uint32_t lane_at = Place(lane % 16, lane / 16, kStateBytes), lane_scores_at = Place(part * 8 + lane % 8, lane / 8, kStateBytes);
  const uint32_t lane_x_at = kToX + Place(lane % 8 + lane / 16 * 8, own * 8 + part * 2 + lane / 8 % 2, kXRow);
  const uint32_t own_x_at = kToX + Place(g, own * 8 + part * 2, kXRow) + q * 4;
  const uint32_t lane_weights = SharedAddress(memory.weights[own]) + lane % 16 * kWeightBytes + lane / 16 * 16;
  int stage = 0, parity = 0;
  for (int base = 0; base < count; base += kChunk) {
    WaitForCopies<1>();
    __syncthreads();  // the chunk's inputs and decays have come, and everybody is done with the chunk before
    if (base + 2 * kChunk < count) load(base + 2 * kChunk, stage == 0 ? 2 : stage - 1);
    CommitCopies();
    const uint32_t at = shared_base + stage * static_cast<uint32_t>(sizeof(Stage));
    const uint32_t at_b = at + lane_at, at_c = at + kToC + lane_at, at_scores = at + lane_scores_at;
    const Decays& decays = memory.decays[parity][own];

    float outer[kTiles][2][4] = {};
    const auto products = [&](auto with_scores) {
      constexpr bool kScores = decltype(with_scores)::value;
      float score[kTiles][4] = {};
      uint32_t score_b[4];
#pragma unroll
      for (int k = 0; k < kState / 16; k++) {
        uint32_t c[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; m++) LoadMatrices(c[m], (at_c ^ 32 * k) + m * 16 * kStateBytes);
        if constexpr (kScores) {
          if (k % 2 == 0) LoadMatrices(score_b, at_scores ^ 32 * k);
#pragma unroll
          for (int m = 0; m < kTiles; m++) MultiplyAdd(score[m], c[m], score_b[k % 2 * 2], score_b[k % 2 * 2 + 1]);
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const uint32_t s0 = PackPair(state[2 * k][2 * j], state[2 * k][2 * j + 1]), s1 = PackPair(state[2 * k + 1][2 * j], state[2 * k + 1][2 * j + 1]);
#pragma unroll
          for (int m = 0; m < kTiles; m++) MultiplyAdd(outer[m][j], c[m], s0, s1);
        }
      }
      if constexpr (kScores) {
        const int from = part * 8 + 2 * q;
#pragma unroll
        for (int of = 0; of < kHeads; of++) {
          const Decays& d = memory.decays[parity][of];
          const float2 log_from = *reinterpret_cast<const float2*>(d.log + from), step = *reinterpret_cast<const float2*>(d.step + from);
#pragma unroll
          for (int m = 0; m < kTiles; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
              const int t = m * 16 + 8 * r + g;
              const float log = d.log[t];
              const float low = from <= t ? score[m][2 * r] * (FastExp2(log - log_from.x) * step.x) : 0;
              const float high = from + 1 <= t ? score[m][2 * r + 1] * (FastExp2(log - log_from.y) * step.y) : 0;
              uint32_t leading, rest;
              SplitPair(low, high, leading, rest);
              char* const to = memory.weights[of] + t * kWeightBytes + from * 2;
              *reinterpret_cast<uint32_t*>(to) = leading, *reinterpret_cast<uint32_t*>(to + kRestBytes) = rest;
            }
        }
      }
    };
    if (kHeads == 1 || own == 0)
      products(std::true_type{});
    else
      products(std::false_type{});
    if (steps_warp && base + kChunk < count) {
      const float raw = raw_next;
      raw_next = raw_step(base + 2 * kChunk);
      take_steps(base + kChunk, raw, memory.decays[parity ^ 1][steps_of]);
    }
    // x transposed: rows 16 part + {g, g + 8}, tokens 16 k + 2 q + {0, 1, 8, 9}. As a second operand, registers {0, 2} are its first eight rows, {1, 3} the
    // others.
    uint32_t x[2][4];
#pragma unroll
    for (int k = 0; k < 2; k++) LoadTransposed(x[k], at + lane_x_at + k * 16 * kXRow);
    __syncthreads();  // the weights have come

    float inner[kTiles][2][4] = {};
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (k > m) continue;
        uint32_t leading[4], rest[4];
        LoadMatrices(leading, lane_weights + m * 16 * kWeightBytes + k * 32);
        LoadMatrices(rest, lane_weights + m * 16 * kWeightBytes + k * 32 + kRestBytes);
#pragma unroll
        for (int j = 0; j < 2; j++) MultiplyAdd(inner[m][j], leading, x[k][j], x[k][j + 2]);
#pragma unroll
        for (int j = 0; j < 2; j++) MultiplyAdd(inner[m][j], rest, x[k][j], x[k][j + 2]);
      }
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int t = m * 16 + 8 * r + g;
        const float decay = FastExp2(decays.log[t]);
        uint32_t pair[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const uint32_t own_x = *reinterpret_cast<const uint32_t*>(shared + stage * sizeof(Stage) + (own_x_at ^ 16 * j) + (t - g) * kXRow);
          pair[j] = PackPair(fmaf(skip, LowHalf(own_x), fmaf(decay, outer[m][j][2 * r], inner[m][j][2 * r])),
                             fmaf(skip, HighHalf(own_x), fmaf(decay, outer[m][j][2 * r + 1], inner[m][j][2 * r + 1])));
        }
        // Lanes 2i and 2i + 1 swap a pair, so that each has four columns beside each other.
        const bool odd = q & 1;
        const uint32_t other = __shfl_xor_sync(~0u, odd ? pair[0] : pair[1], 1);
        const int token = base + t;
        if (token >= known && token < count)
          *reinterpret_cast<uint2*>(o.y.data + static_cast<int64_t>(first_row + token) * y_stride + head * kHeadDim + part * 16 + (odd ? 8 : 0) + q / 2 * 4) =
              odd ? make_uint2(other, pair[1]) : make_uint2(pair[0], other);
      }

    const bool full = base + kChunk <= count, keep = full && o.KeepsBoundary(s, begin + base + kChunk, end);
    if (full && (keep || base + kChunk < count)) {
      uint32_t leading[2][4], rest[2][4];  // x weighted
#pragma unroll
      for (int k = 0; k < 2; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float2 w = *reinterpret_cast<const float2*>(decays.to_end + 16 * k + 8 * half + 2 * q);
#pragma unroll
          for (int r = 2 * half; r < 2 * half + 2; r++) SplitPair(w.x * LowHalf(x[k][r]), w.y * HighHalf(x[k][r]), leading[k][r], rest[k][r]);
        }
      const float decay = FastExp2(decays.log[kChunk - 1]);
#pragma unroll
      for (int i = 0; i < kState / 8; i += 2) {
#pragma unroll
        for (int r = 0; r < 4; r++) state[i][r] *= decay, state[i + 1][r] *= decay;
#pragma unroll
        for (int k = 0; k < 2; k++) {
          uint32_t b[4];
          LoadTransposed(b, (at_b ^ 16 * i) + k * 16 * kStateBytes);
          MultiplyAdd(state[i], leading[k], b[0], b[1]);
          MultiplyAdd(state[i + 1], leading[k], b[2], b[3]);
          MultiplyAdd(state[i], rest[k], b[0], b[1]);
          MultiplyAdd(state[i + 1], rest[k], b[2], b[3]);
        }
      }
      if (keep) {
        float* to = o.Boundary(s, begin + base + kChunk, head) + state_offset;
#pragma unroll
        for (int i = 0; i < kState / 8; i++) {
          *reinterpret_cast<float2*>(to + 8 * i) = make_float2(state[i][0], state[i][1]);
          *reinterpret_cast<float2*>(to + 8 * kState + 8 * i) = make_float2(state[i][2], state[i][3]);
        }
      }
    }
    stage = stage == 2 ? 0 : stage + 1, parity ^= 1;
  }
}

template <int kHeads>
void LaunchChunks(State& device, const ScanOperands<bf16>& o, const Picked& picked, int64_t count) {
  Launch(device, Chunks<kHeads>, dim3(static_cast<unsigned>(o.heads / kHeads), static_cast<unsigned>(count)), dim3(128 * kHeads), sizeof(ChunkMemory<kHeads>), o,
         picked);
}

}  // namespace

void ScanChunks(State& device, const ScanOperands<bf16>& o, const Picked& picked, int64_t count) {
  if (ScanChunksOnHopper(device, o, picked, count)) return;
  // Two heads share B, C and G; but few sequences make too few blocks of them.
  const bool two = o.heads_per_group % 2 == 0 && o.heads * count >= 2 * device.sms();
  two ? LaunchChunks<2>(device, o, picked, count) : LaunchChunks<1>(device, o, picked, count);
}

}  // namespace bamba::cuda
