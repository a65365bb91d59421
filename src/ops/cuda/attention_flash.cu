#include <algorithm>

#include "ops/cuda/attention.cuh"

// Flash attention (Dao 2023, "FlashAttention-2") over pages, with bf16 matrix products and f32 sums. The query heads of a key head share a tile of rows, so one
// kernel serves prompts (many tokens of each head), single tokens (the heads alone) and everything between.
//
// What a row gets is a function of its query and of the keys that it sees, block by block from the first: a row of a matrix product does not depend on the rows
// beside it, and a block that a row sees nothing of changes none of its bits (its maximum stays, so it is scaled by exactly 1 and gets exact zeros added).
// Only where the keys of a single token are split over blocks of threads do its sums have another order.
namespace bamba::cuda {
namespace {

constexpr int kKeys = static_cast<int>(kKvBlock);
constexpr int kMostSplits = 48;  // of the 8 key heads of one sequence: as many blocks as lie side by side on 132 multiprocessors

// Of one call.
struct FlashPlan {
  int tile_tokens;     // tokens of a tile
  int least;           // sequences of fewer rows are another launch's
  bool store;          // the new keys and values are taken from the batch and stored here; else they are in the pages already
  int splits;          // of the keys of a sequence
  float* partial_out;  // [sequences, heads, splits, head_dim]
  float2* partial;     // [sequences, heads, splits] largest score and sum
};

// Rows in shared memory lie 16 bytes more than their length apart, an odd number of 16-byte units: eight rows of one column of units lie in all 32 banks.
template <int kDim>
constexpr int kPitch = kDim + 8;
template <int kDim, int kRows>
constexpr size_t kSharedBytes = sizeof(bf16) * kPitch<kDim> * (kRows + 4 * kKeys);

// The first `keys` rows of a block of keys or values of one head, zeros after them; row `fresh` comes from elsewhere.
template <int kDim, int kThreads>
__device__ __forceinline__ void LoadKeys(bf16* to, const bf16* from, int64_t stride, int keys, int fresh, const bf16* fresh_row) {
  constexpr int kUnits = kDim / 8;
#pragma unroll
  for (int n = 0; n < (kKeys * kUnits + kThreads - 1) / kThreads; n++) {
    const int i = static_cast<int>(threadIdx.x) + n * kThreads, key = i / kUnits, column = i % kUnits * 8;
    if (kKeys * kUnits % kThreads != 0 && key >= kKeys) break;
    const bf16* const row = key == fresh ? fresh_row : key < keys ? from + key * stride : from;
    CopyAsync(to + key * kPitch<kDim> + column, row + column, key < keys);
  }
}

// A block of threads has a tile of kWarps · kTiles · 16 rows, each warp kTiles · 16 of them: row r is token r mod tile_tokens of the tile and query head
// r / tile_tokens of the key head. Where kSingle, the tile is a sequence's only token, and blockIdx.z the share of the keys.
template <int kDim, int kWarps, int kTiles, bool kSingle>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 1 ? 3 : 2) FlashKernel(const AttentionOperands<bf16> o, const FlashPlan plan) {
  constexpr int kThreads = kWarps * 32, kRows = kWarps * kTiles * 16, kUnits = kDim / 8;
  extern __shared__ __align__(16) bf16 shared[];
  bf16* const q_rows = shared;                             // [kRows]
  bf16* const k_rows = q_rows + kRows * kPitch<kDim>;      // [2][kKeys]
  bf16* const v_rows = k_rows + 2 * kKeys * kPitch<kDim>;  // [2][kKeys]
  LetNextBegin();
  WaitForPrevious();

  const int kv_head = blockIdx.x, group = o.heads / o.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  RowTile tile = {static_cast<int>(blockIdx.y), 0};
  if constexpr (!kSingle) tile = FindTile(o.batch, static_cast<int>(gridDim.y - 1 - blockIdx.y), plan.tile_tokens, plan.least);  // the longest first
  if (tile.sequence < 0) return;
  const DeviceSequence s = o.batch.sequences[tile.sequence];
  if (kSingle && s.rows != 1) return;
  const int tokens = kSingle ? 1 : plan.tile_tokens, count = min(tokens, s.rows - tile.first);
  const int64_t first_row = s.row + tile.first;
  const int position = static_cast<int>(s.position) + tile.first;  // of the tile's first token
  const int keys = position + count;                               // that the tile's last token sees
  int first_block = 0, end_block = (keys + kKeys - 1) / kKeys;
  bool whole = true;  // not one of several shares
  if constexpr (kSingle) {
    const int share = (end_block + plan.splits - 1) / plan.splits;
    whole = share >= end_block;
    first_block = static_cast<int>(blockIdx.z) * share, end_block = min(end_block, first_block + share);
    if (first_block >= end_block) return;
  }

  // A single token's key is taken from its row, and stored by whoever has its block: nobody else looks at that page.
  const bool own_key = plan.store && s.slot >= 0;
  const bf16 *const own_k = o.k.Row(first_row) + kv_head * kDim, *const own_v = o.v.Row(first_row) + kv_head * kDim;
  const auto load = [&](int block, int page, bool values) {
    const KeyBlock<bf16> from = BlockOf(o, s, block, page, kv_head);
    const int fresh = own_key ? position - block * kKeys : -1;
    bf16* const to = (values ? v_rows : k_rows) + block % 2 * kKeys * kPitch<kDim>;
    LoadKeys<kDim, kThreads>(to, values ? from.v : from.k, values ? from.v_stride : from.k_stride, keys - block * kKeys, fresh, values ? own_v : own_k);
  };
  int page = PageOf(o, s, first_block), next_page = first_block + 1 < end_block ? PageOf(o, s, first_block + 1) : 0;

  for (int i = threadIdx.x; i < kRows * kUnits; i += kThreads) {
    const int r = i / kUnits, column = i % kUnits * 8, head = r / tokens, token = r - head * tokens;
    const bool there = head < group && token < count;
    CopyAsync(q_rows + r * kPitch<kDim> + column, o.q.Row(first_row + (there ? token : 0)) + static_cast<int64_t>(kv_head * group + (there ? head : 0)) * kDim + column, there);
  }
  load(first_block, page, false);
  CommitCopies();
  load(first_block, page, true);
  CommitCopies();

  if (own_key && end_block * kKeys > position) {
    const int64_t last_page = o.batch.pages[s.first_page + position / kKeys], entry = position % kKeys;
    bf16* const to_k = o.k_pages + last_page * o.k_page + entry * o.k_key + kv_head * kDim;
    bf16* const to_v = o.v_pages + last_page * o.v_page + entry * o.v_key + kv_head * kDim;
    for (int i = threadIdx.x; i < 2 * kUnits; i += kThreads) {
      const int column = i % kUnits * 8;
      *reinterpret_cast<uint4*>((i < kUnits ? to_k : to_v) + column) = *reinterpret_cast<const uint4*>((i < kUnits ? own_k : own_v) + column);
    }
  }

  float out[kTiles][kDim / 8][4], top[kTiles][2], sum[kTiles][2];
  int last_key[kTiles][2];  // that the row sees
#pragma unroll
  for (int t = 0; t < kTiles; t++) {
#pragma unroll
    for (int d = 0; d < kDim / 8; d++) out[t][d][0] = out[t][d][1] = out[t][d][2] = out[t][d][3] = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[t][h] = -INFINITY, sum[t][h] = 0;
      last_key[t][h] = position + min(count - 1, ((warp * kTiles + t) * 16 + h * 8 + lane / 4) % tokens);
    }
  }
  const float to_log2 = o.scale * 1.4426950408889634f;
  // Addresses that the lane gives for the 8x8 matrices: of 16 rows by 16 columns (q: by rows, then columns; v: as they lie), and of keys (by columns first).
  const uint32_t q_at = SharedAddress(q_rows + (warp * kTiles * 16 + lane % 16) * kPitch<kDim> + lane / 16 * 8);
  const uint32_t k_at = SharedAddress(k_rows + (lane % 8 + lane / 16 * 8) * kPitch<kDim> + lane / 8 % 2 * 8);
  const uint32_t v_at = SharedAddress(v_rows + lane % 16 * kPitch<kDim> + lane / 16 * 8);
  constexpr uint32_t kRow = kPitch<kDim> * sizeof(bf16), kColumn = sizeof(bf16);

  for (int block = first_block; block < end_block; block++) {
    const uint32_t buffer = static_cast<uint32_t>(block % 2) * kKeys * kRow;
    page = next_page;
    if (block + 2 < end_block) next_page = PageOf(o, s, block + 2);
    WaitForCopies<1>();  // for the keys
    __syncthreads();  // everybody's; and everybody is done with the block before
    if (block + 1 < end_block) load(block + 1, page, false);
    CommitCopies();

    float score[kTiles][kKeys / 8][4];
#pragma unroll
    for (int t = 0; t < kTiles; t++)
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) score[t][n][0] = score[t][n][1] = score[t][n][2] = score[t][n][3] = 0;
#pragma unroll
    for (int d = 0; d < kDim / 16; d++) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; t++) LoadMatrices(a[t], q_at + t * 16 * kRow + d * 16 * kColumn);
#pragma unroll
      for (int n = 0; n < kKeys / 16; n++) {
        uint32_t b[4];
        LoadMatrices(b, k_at + buffer + n * 16 * kRow + d * 16 * kColumn);
#pragma unroll
        for (int t = 0; t < kTiles; t++) Multiply(score[t][2 * n], a[t], b[0], b[1]), Multiply(score[t][2 * n + 1], a[t], b[2], b[3]);
      }
    }

    if (block * kKeys + kKeys - 1 > position) {
#pragma unroll
      for (int t = 0; t < kTiles; t++)
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (block * kKeys + n * 8 + lane % 4 * 2 + i % 2 > last_key[t][i / 2]) score[t][n][i] = -INFINITY;
    }
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float most = score[t][0][2 * h];
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(score[t][n][2 * h], score[t][n][2 * h + 1]));
        const float new_top = fmaxf(top[t][h], QuadMax(most)), shift = new_top * to_log2;
        factor[h] = Exp2((top[t][h] - new_top) * to_log2);  // exactly 1 where the maximum stays
        float part = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; i++) part += score[t][n][i] = Exp2(fmaf(score[t][n][i], to_log2, -shift));
        sum[t][h] = fmaf(sum[t][h], factor[h], part);
        top[t][h] = new_top;
      }
      if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int d = 0; d < kDim / 8; d++) out[t][d][0] *= factor[0], out[t][d][1] *= factor[0], out[t][d][2] *= factor[1], out[t][d][3] *= factor[1];
      }
    }

    WaitForCopies<1>();  // for the values
    __syncthreads();
    if (block + 1 < end_block) load(block + 1, page, true);
    CommitCopies();
#pragma unroll
    for (int n = 0; n < kKeys / 16; n++) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[t][i] = PackPair(score[t][2 * n + i / 2][i % 2 * 2], score[t][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < kDim / 16; d++) {
        uint32_t b[4];
        LoadTransposed(b, v_at + buffer + n * 16 * kRow + d * 16 * kColumn);
#pragma unroll
        for (int t = 0; t < kTiles; t++) Multiply(out[t][2 * d], a[t], b[0], b[1]), Multiply(out[t][2 * d + 1], a[t], b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int t = 0; t < kTiles; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float whole_sum = QuadSum(sum[t][h]), inverse = 1 / whole_sum;
      const int r = (warp * kTiles + t) * 16 + h * 8 + lane / 4, head = r / tokens, token = r - head * tokens;
      if (head >= group || token >= count) continue;
      const int64_t q_head = kv_head * group + head;
      if (whole) {
        bf16* const y = o.y.Row(first_row + token) + q_head * kDim + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < kDim / 8; d++)
          *reinterpret_cast<uint32_t*>(y + d * 8) = PackPair(out[t][d][2 * h] * inverse, out[t][d][2 * h + 1] * inverse);
      } else {
        const int64_t at = (tile.sequence * static_cast<int64_t>(o.heads) + q_head) * plan.splits + blockIdx.z;
        if (lane % 4 == 0) plan.partial[at] = {top[t][h], whole_sum};
        float* const y = plan.partial_out + at * kDim + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < kDim / 8; d++) *reinterpret_cast<float2*>(y + d * 8) = {out[t][d][2 * h], out[t][d][2 * h + 1]};
      }
    }
}

// Combines the shares of the keys of one head of a single token, in their order. A thread has one column.
__global__ void CombineKernel(const AttentionOperands<bf16> o, const FlashPlan plan) {
  LetNextBegin();
  WaitForPrevious();
  const DeviceSequence s = o.batch.sequences[blockIdx.y];
  const int blocks = static_cast<int>((s.position + kKeys) / kKeys), share = (blocks + plan.splits - 1) / plan.splits, shares = (blocks + share - 1) / share;
  const int column = threadIdx.x;
  if (s.rows != 1 || shares == 1 || column >= o.head_dim) return;
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * o.heads + blockIdx.x) * plan.splits;
  const float2* const partial = plan.partial + at;
  const float* const parts = plan.partial_out + at * o.head_dim + column;
  const float to_log2 = o.scale * 1.4426950408889634f;
  float top = -INFINITY;
#pragma unroll 8
  for (int i = 0; i < shares; i++) top = fmaxf(top, partial[i].x);
  float sum = 0, out = 0;
#pragma unroll 8
  for (int i = 0; i < shares; i++) {
    const float2 one = partial[i];
    const float factor = Exp2((one.x - top) * to_log2);
    sum = fmaf(one.y, factor, sum);
    out = fmaf(parts[static_cast<int64_t>(i) * o.head_dim], factor, out);
  }
  o.y.Row(s.row)[static_cast<int64_t>(blockIdx.x) * o.head_dim + column] = FromFloat<bf16>(out / sum);
}

template <int kDim>
void Run(State& state, const AttentionOperands<bf16>& o, const Batch& batch, bool invariant) {
  const int group = o.heads / o.kv_heads, sequences = o.batch.sequence_count;
  // Single tokens in a tile of their own; where a key head has too many query heads for that, with the others.
  constexpr int kSingleRows = 16;
  const bool singles = group <= kSingleRows, only_singles = o.batch.most_rows <= 1;
  FlashPlan plan = {};
  plan.store = only_singles;
  plan.splits = 1;
  if (!only_singles) StoreKeys(state, o);
  const bool any_single = only_singles || std::any_of(batch.sequences.begin(), batch.sequences.end(), [](const Sequence& s) { return s.rows == 1; });
  const auto decode = [&] { return invariant ? InvariantDecodeAttention(state, o, plan.store) : DecodeAttention(state, o, plan.store); };
  if (singles && any_single && !decode()) {
    if (!invariant) {
      // Some waves of blocks, so that the last one's emptiness costs little; three blocks fit a multiprocessor.
      const int64_t heads = static_cast<int64_t>(sequences) * o.kv_heads, due = int64_t{8} * 3 * state.sms();
      plan.splits = static_cast<int>(std::clamp<int64_t>(DivideUp(due, heads), 1, kMostSplits));
      const auto bytes_of = [&](int64_t splits) { return sequences * splits * o.heads * static_cast<int64_t>(sizeof(float) * kDim + sizeof(float2)); };
      while (plan.splits > 1 && bytes_of(plan.splits) > static_cast<int64_t>(State::kScratchBytes)) plan.splits /= 2;
      plan.partial = reinterpret_cast<float2*>(state.scratch());
      plan.partial_out = reinterpret_cast<float*>(plan.partial + sequences * static_cast<int64_t>(o.heads) * plan.splits);
    }
    plan.tile_tokens = 1;
    const dim3 grid(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(sequences), static_cast<unsigned>(plan.splits));
    CHECK_MSG(sequences <= 65535, "{} sequences in one call", sequences);
    Launch(state, FlashKernel<kDim, 1, 1, true>, grid, 32, kSharedBytes<kDim, kSingleRows>, o, plan);
    if (plan.splits > 1)
      Launch(state, CombineKernel, dim3(static_cast<unsigned>(o.heads), static_cast<unsigned>(sequences)), static_cast<unsigned>(DivideUp(kDim, 32) * 32), 0, o, plan);
  }
  if (singles && only_singles) return;
  if (!invariant && !only_singles && HopperAttention(state, o, batch, singles ? 2 : 1)) return;
  constexpr int kWarps = 4, kTiles = 2, kRows = kWarps * kTiles * 16;
  plan.tile_tokens = kRows / group, plan.least = singles ? 2 : 1, plan.splits = 1;
  const int64_t tiles = TilesOf(batch, plan.tile_tokens, plan.least);
  CHECK_MSG(tiles <= 65535, "{} rows in one call", o.batch.rows);
  Launch(state, FlashKernel<kDim, kWarps, kTiles, false>, dim3(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(tiles)), kWarps * 32, kSharedBytes<kDim, kRows>, o, plan);
}

}  // namespace

bool FlashAttention(State& state, const AttentionOperands<bf16>& o, const Batch& batch, bool invariant) {
  const auto aligned = [](const void* p, int64_t stride) { return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 8 == 0; };
  if (!aligned(o.q.data, o.q.stride) || !aligned(o.k.data, o.k.stride) || !aligned(o.v.data, o.v.stride) || !aligned(o.y.data, o.y.stride) ||
      !aligned(o.k_pages, o.k_page) || !aligned(o.v_pages, o.v_page) || o.k_key % 8 != 0 || o.v_key % 8 != 0 || o.heads / o.kv_heads > 128 || !(o.scale > 0))
    return false;
  switch (o.head_dim) {
    case 16: Run<16>(state, o, batch, invariant); return true;
    case 32: Run<32>(state, o, batch, invariant); return true;
    case 48: Run<48>(state, o, batch, invariant); return true;
    case 64: Run<64>(state, o, batch, invariant); return true;
    case 80: Run<80>(state, o, batch, invariant); return true;
    case 96: Run<96>(state, o, batch, invariant); return true;
    case 112: Run<112>(state, o, batch, invariant); return true;
    case 128: Run<128>(state, o, batch, invariant); return true;
    default: return false;
  }
}

}  // namespace bamba::cuda
