#include <algorithm>

#include "ops/cuda/attention.cuh"

// Attention of sequences of one row, heads of 128 and at most 8 query heads to a key head, with bf16 matrix products.
//
// DecodeKernel lives from bandwidth: keys and values go from memory to registers in the order in which the products take them, so a warp has little else to do
// than to read. InvariantDecodeKernel gives the bits of attention_flash.cu: the same products in the same chain of blocks of keys; what is spread over warps is
// what the chain doesn't order, keys for the scores and columns for the values.
//
// The batch, its page tables and the pages but for the newest keys are older than the step: a copy to the device lies between whatever wrote them and its first
// kernel. So they are read before WaitForPrevious.
namespace bamba::cuda {
namespace {

constexpr int kDim = 128, kKeys = static_cast<int>(kKvBlock), kMostGroup = 8;
constexpr int kWarps = 4, kThreads = kWarps * 32, kWarpKeys = kKeys / kWarps;
static_assert(kWarpKeys == 16, "of a product");
constexpr int kMostSplits = 64;
// Blocks of threads on a multiprocessor: more of them read no faster, and where there are few they would be spread less evenly. Shared memory that none of them
// uses keeps a third away.
constexpr int kResident = 2;
constexpr size_t kUnusedBytes = 60 * 1024;

// Of one call.
struct DecodePlan {
  bool store;          // the new keys and values are to be stored; else they are in the pages already
  int splits;          // of the keys of a sequence, at most
  int least;           // pages of a split
  float* partial_out;  // [sequences, heads, splits, kDim]
  float2* partial;     // [sequences, heads, splits] largest score, times to_log2, and sum
};

__device__ __forceinline__ uint4 Read16(const bf16* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}
__device__ __forceinline__ uint32_t Word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }
// Of two words of pairs: their first numbers, or their second ones.
__device__ __forceinline__ uint32_t PairUp(uint32_t x, uint32_t y, int i) { return __byte_perm(x, y, i == 0 ? 0x5410 : 0x7632); }
// Of an 8x8 matrix of bf16 in a warp.
__device__ __forceinline__ uint32_t Transposed(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// Over the lanes that differ in lane / 4.
__device__ __forceinline__ float ColumnMax(float x) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}
__device__ __forceinline__ float ColumnSum(float x) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// The page numbers of consecutive blocks, 32 at a time, one in each lane. Blocks are asked for in their order.
class PageList {
 public:
  __device__ __forceinline__ PageList(const AttentionOperands<bf16>& o, const DeviceSequence& s, int first, int end)
      : pages_(o.batch.pages + s.first_page), base_(first), end_(s.slot < 0 ? 0 : end) {
    now_ = Read(base_), next_ = Read(base_ + 32);
  }
  __device__ __forceinline__ int Of(int block) {
    if (block - base_ == 32) base_ += 32, now_ = next_, next_ = Read(base_ + 32);
    return __shfl_sync(~0u, now_, block - base_);
  }

 private:
  __device__ __forceinline__ int Read(int block) const {
    const int at = block + static_cast<int>(threadIdx.x) % 32;
    return at < end_ ? pages_[at] : 0;
  }
  const int32_t* pages_;
  int base_, end_, now_, next_;
};

// The new row of keys and values of one head, 16 bytes a thread.
__device__ __forceinline__ void StoreRow(const AttentionOperands<bf16>& o, const DeviceSequence& s, int position, int kv_head) {
  constexpr int kUnits = kDim / 8;
  if (threadIdx.x >= 2 * kUnits) return;
  const int64_t page = o.batch.pages[s.first_page + position / kKeys], entry = position % kKeys;
  const int column = kv_head * kDim + static_cast<int>(threadIdx.x) % kUnits * 8;
  if (threadIdx.x < kUnits) *reinterpret_cast<uint4*>(o.k_pages + page * o.k_page + entry * o.k_key + column) = *reinterpret_cast<const uint4*>(o.k.Row(s.row) + column);
  else *reinterpret_cast<uint4*>(o.v_pages + page * o.v_page + entry * o.v_key + column) = *reinterpret_cast<const uint4*>(o.v.Row(s.row) + column);
}

// A block of threads has a share of the pages of one key head; each warp has 16 keys of every page, which it takes for itself, with the maximum, the sum and the
// output of its own.
//
// The scores of 16 keys by 8 query heads are one tile of products, so is the output of 16 columns by 8 query heads. Of both products' inner dimension the order
// is free: lanes take 16 bytes of a row where a tile has pairs of numbers.
__global__ void __launch_bounds__(kThreads, kResident) DecodeKernel(const AttentionOperands<bf16> o, const DecodePlan plan) {
  constexpr int kPitch = kDim + 4;  // lanes of a tile write to 32 banks
  __shared__ float outs[kWarps][kMostGroup][kPitch];
  __shared__ float tops[kWarps][kMostGroup], sums[kWarps][kMostGroup];
  __shared__ float factors[kMostGroup][kMostSplits], totals[kMostGroup];
  __shared__ bool last;
  LetNextBegin();
  const DeviceSequence s = o.batch.sequences[blockIdx.y];
  if (s.rows != 1) return;
  const int kv_head = blockIdx.x, group = o.heads / o.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4;
  const int position = static_cast<int>(s.position), blocks = position / kKeys + 1;
  const int shares = min(plan.splits, (blocks + plan.least - 1) / plan.least), share = static_cast<int>(blockIdx.z);
  if (share >= shares) return;
  const int first = static_cast<int>(static_cast<int64_t>(share) * blocks / shares), end = static_cast<int>(static_cast<int64_t>(share + 1) * blocks / shares);
  PageList pages(o, s, first, end);

  // Lane (row, column) has numbers of key `row` and `row + 8`: 16 bytes from each 64.
  uint4 k[2][4];
  const bf16 *const own_k = o.k.Row(s.row) + kv_head * kDim + column * 8, *const own_v = o.v.Row(s.row) + kv_head * kDim + row * 8;
  const auto read_keys = [&](int block, int page) {
    const int key = warp * kWarpKeys + row, newest = position - block * kKeys;
    const bf16 *at = o.k_pages + page * o.k_page + key * o.k_key + kv_head * kDim + column * 8, *at8 = at + 8 * o.k_key;
    at = key < newest ? at : own_k, at8 = key + 8 < newest ? at8 : own_k;
#pragma unroll
    for (int i = 0; i < 4; i++) k[0][i] = Read16(at + i * 32);
#pragma unroll
    for (int i = 0; i < 4; i++) k[1][i] = Read16(at8 + i * 32);
  };
  // And columns 8 row … 8 row + 7 and 64 further of keys 2 column, 2 column + 1, and 8 further. What weighs 0 must be finite.
  uint4 v[4][2];
  const auto read_values = [&](int block, int page) {
    const int key = warp * kWarpKeys + 2 * column, newest = position - block * kKeys;
    const bf16* const base = o.v_pages + page * o.v_page + key * o.v_key + kv_head * kDim + row * 8;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int further = j % 2 + j / 2 * 8;
      const bf16* at = base + further * o.v_key;
      at = key + further < newest ? at : own_v;
      v[j][0] = Read16(at), v[j][1] = Read16(at + 64);
    }
  };
  const int first_page = pages.Of(first);
  const bool early = first + 1 < blocks;  // the newest keys aren't among the first
  if (early) read_keys(first, first_page), read_values(first, first_page);
  WaitForPrevious();
  if (!early) read_keys(first, first_page), read_values(first, first_page);
  uint32_t q[8][2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint4 x = row < group ? *reinterpret_cast<const uint4*>(o.q.Row(s.row) + static_cast<int64_t>(kv_head * group + row) * kDim + (column + 4 * i) * 8) : uint4{};
    q[2 * i][0] = x.x, q[2 * i][1] = x.y, q[2 * i + 1][0] = x.z, q[2 * i + 1][1] = x.w;
  }
  if (plan.store && s.slot >= 0 && end == blocks) StoreRow(o, s, position, kv_head);

  // Of heads 2 column and 2 column + 1. `top` is a largest score of some time ago, which later ones may exceed by a factor of 2^kSlack.
  constexpr float kSlack = 8;
  float out[8][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int e = 0; e < 8; e++) out[e][0] = out[e][1] = out[e][2] = out[e][3] = 0;
  const float to_log2 = o.scale * 1.4426950408889634f;
#pragma unroll 1
  for (int block = first; block < end; block++) {
    const int key = block * kKeys + warp * kWarpKeys;
    if (key > position) break;
    const int next_page = block + 1 < end ? pages.Of(block + 1) : 0;
    float score[4] = {0, 0, 0, 0}, other[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t low[4] = {k[0][i].x, k[1][i].x, k[0][i].y, k[1][i].y}, high[4] = {k[0][i].z, k[1][i].z, k[0][i].w, k[1][i].w};
      Multiply(score, low, q[2 * i][0], q[2 * i][1]);
      Multiply(other, high, q[2 * i + 1][0], q[2 * i + 1][1]);
    }
    if (block + 1 < end) read_keys(block + 1, next_page);
#pragma unroll
    for (int i = 0; i < 4; i++) score[i] = (score[i] + other[i]) * to_log2;
    if (key + kWarpKeys - 1 > position) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (key + row + i / 2 * 8 > position) score[i] = -INFINITY;
    }
    const float most[2] = {fmaxf(score[0], score[2]), fmaxf(score[1], score[3])};
    if (__any_sync(~0u, most[0] > top[0] + kSlack || most[1] > top[1] + kSlack)) {
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float new_top = fmaxf(top[h], ColumnMax(most[h]));
        factor[h] = Exp2(top[h] - new_top);
        top[h] = new_top, sum[h] *= factor[h];
      }
#pragma unroll
      for (int e = 0; e < 8; e++) out[e][0] *= factor[0], out[e][1] *= factor[1], out[e][2] *= factor[0], out[e][3] *= factor[1];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) score[i] = Exp2(score[i] - top[i % 2]);
    sum[0] += score[0] + score[2], sum[1] += score[1] + score[3];
    const uint32_t weights = Transposed(PackPair(score[0], score[1])), weights8 = Transposed(PackPair(score[2], score[3]));
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const uint32_t a[4] = {PairUp(Word(v[0][0], e / 2), Word(v[1][0], e / 2), e % 2), PairUp(Word(v[0][1], e / 2), Word(v[1][1], e / 2), e % 2),
                             PairUp(Word(v[2][0], e / 2), Word(v[3][0], e / 2), e % 2), PairUp(Word(v[2][1], e / 2), Word(v[3][1], e / 2), e % 2)};
      Multiply(out[e], a, weights, weights8);
    }
    if (block + 1 < end) read_values(block + 1, next_page);
  }

  // Out's tile e has columns 8 row + e (and 64 further); they lie at e · 16 + row (and 8 further).
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float whole = ColumnSum(sum[h]);
    if (row == 0) tops[warp][2 * column + h] = top[h], sums[warp][2 * column + h] = whole;
#pragma unroll
    for (int e = 0; e < 8; e++) outs[warp][2 * column + h][e * 16 + row] = out[e][h], outs[warp][2 * column + h][e * 16 + 8 + row] = out[e][2 + h];
  }
  __syncthreads();
  const int own_column = static_cast<int>(threadIdx.x), place = own_column % 8 * 16 + own_column / 64 * 8 + own_column / 8 % 8;
  bf16* const y = o.y.Row(s.row) + static_cast<int64_t>(kv_head * group) * kDim + own_column;
  const int64_t parts = (static_cast<int64_t>(blockIdx.y) * o.heads + kv_head * group) * plan.splits;
  for (int head = 0; head < group; head++) {
    float most = tops[0][head], all = 0, x = 0;
#pragma unroll
    for (int w = 1; w < kWarps; w++) most = fmaxf(most, tops[w][head]);
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      const float factor = Exp2(tops[w][head] - most);
      all = fmaf(sums[w][head], factor, all), x = fmaf(outs[w][head][place], factor, x);
    }
    if (shares == 1) {
      y[head * kDim] = FromFloat<bf16>(x / all);
    } else {
      const int64_t at = parts + head * plan.splits + share;
      plan.partial_out[at * kDim + own_column] = x;
      if (own_column == 0) plan.partial[at] = {most, all};
    }
  }
  if (shares == 1) return;

  // The last block of threads to come combines all shares, in their order.
  __threadfence();
  __syncthreads();
  int32_t* const counter = o.counters + blockIdx.y * gridDim.x + kv_head;
  if (threadIdx.x == 0) last = atomicAdd(counter, 1) == shares - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *counter = 0;
  for (int head = warp; head < group; head += kWarps) {
    float2 part[kMostSplits / 32];
    float most = -INFINITY, all = 0;
#pragma unroll
    for (int i = 0; i < kMostSplits / 32; i++) {
      const int at = lane + 32 * i;
      part[i] = at < shares ? __ldcg(plan.partial + parts + head * plan.splits + at) : float2{-INFINITY, 0};
      most = fmaxf(most, part[i].x);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
#pragma unroll
    for (int i = 0; i < kMostSplits / 32; i++) {
      const float factor = Exp2(part[i].x - most);
      factors[head][lane + 32 * i] = factor, all = fmaf(part[i].y, factor, all);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) all += __shfl_xor_sync(~0u, all, lanes);
    if (lane == 0) totals[head] = all;
  }
  __syncwarp();
  // A warp has a head, a lane 4 columns.
  for (int head = warp; head < group; head += kWarps) {
    const float4* const from = reinterpret_cast<const float4*>(plan.partial_out + (parts + head * plan.splits) * kDim) + lane;
    float4 sum = {0, 0, 0, 0};
#pragma unroll 16
    for (int i = 0; i < shares; i++) {
      const float4 x = __ldcg(from + i * (kDim / 4));
      const float factor = factors[head][i];
      sum.x = fmaf(x.x, factor, sum.x), sum.y = fmaf(x.y, factor, sum.y), sum.z = fmaf(x.z, factor, sum.z), sum.w = fmaf(x.w, factor, sum.w);
    }
    const float inverse = 1 / totals[head];
    *reinterpret_cast<uint2*>(o.y.Row(s.row) + static_cast<int64_t>(kv_head * group + head) * kDim + lane * 4) =
        uint2{PackPair(sum.x * inverse, sum.y * inverse), PackPair(sum.z * inverse, sum.w * inverse)};
  }
}

// A block of threads has all keys of one key head, block after block of kKeys, as attention_flash.cu takes them. Each warp has the scores of 16 keys of a
// block, and kSlice columns of the output. While the values of one block are added up, the scores of the next are computed, and the keys and values after those
// are on their way.
constexpr int kSlice = kDim / kWarps, kBuffers = 2, kRowPitch = kDim + 8;
constexpr int kInvariantResident = 3;  // blocks on a multiprocessor: each waits for its own chain, so three hide more than a third buffer does
struct InvariantShared {
  bf16 k[kBuffers][kKeys * kRowPitch], v[kBuffers][kKeys * kRowPitch];
  float scores[2][kMostGroup][kKeys + 8];
};

__global__ void __launch_bounds__(kThreads, kInvariantResident) InvariantDecodeKernel(const AttentionOperands<bf16> o, const DecodePlan plan) {
  extern __shared__ __align__(16) char shared_bytes[];
  InvariantShared& shared = *reinterpret_cast<InvariantShared*>(shared_bytes);
  LetNextBegin();
  const DeviceSequence s = o.batch.sequences[blockIdx.y];
  if (s.rows != 1) return;
  const int kv_head = blockIdx.x, group = o.heads / o.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4;
  const int position = static_cast<int>(s.position), blocks = position / kKeys + 1;
  PageList pages(o, s, 0, blocks);
  const bf16 *const own_k = o.k.Row(s.row) + kv_head * kDim, *const own_v = o.v.Row(s.row) + kv_head * kDim;
  // A thread copies 16 bytes of every eighth key. The newest key lies in its row; those after it become zeros.
  constexpr int kUnits = kDim / 8;
  const int first_key = static_cast<int>(threadIdx.x) / kUnits, unit = static_cast<int>(threadIdx.x) % kUnits * 8;
  const auto copy = [&](bf16* to, const bf16* page, int64_t stride, const bf16* own, int newest) {
    to += first_key * kRowPitch + unit, page += first_key * stride;
#pragma unroll
    for (int n = 0; n < kKeys * kUnits / kThreads; n++) {
      const int key = first_key + n * (kThreads / kUnits);
      CopyAsync(to + n * (kThreads / kUnits) * kRowPitch, (key < newest ? page + n * (kThreads / kUnits) * stride : own) + unit, key <= newest);
    }
  };
  int page_before = 0;
  const auto ask = [&](int block) {  // for the keys of `block`, and the values of the one before; blocks are asked for in their order
    const int page = block < blocks ? pages.Of(block) : 0;
    if (block < blocks) copy(shared.k[block % kBuffers], o.k_pages + page * o.k_page + kv_head * kDim, o.k_key, own_k, position - block * kKeys);
    if (block > 0 && block <= blocks)
      copy(shared.v[(block - 1) % kBuffers], o.v_pages + page_before * o.v_page + kv_head * kDim, o.v_key, own_v, position - (block - 1) * kKeys);
    CommitCopies();
    page_before = page;
  };
  const bool early = blocks > kBuffers;  // the newest keys aren't among the first
  if (early) ask(0), ask(1);
  WaitForPrevious();
  if (!early) ask(0), ask(1);
  // Row r of the products is query head r; there are no rows from 8 on.
  const bf16* const q_row = o.q.Row(s.row) + static_cast<int64_t>(kv_head * group + row) * kDim;
  uint32_t q[kDim / 16][2];
#pragma unroll
  for (int d = 0; d < kDim / 16; d++)
#pragma unroll
    for (int half = 0; half < 2; half++) q[d][half] = row < group ? *reinterpret_cast<const uint32_t*>(q_row + d * 16 + half * 8 + column * 2) : 0;
  if (plan.store && s.slot >= 0) StoreRow(o, s, position, kv_head);

  const uint32_t k_at = SharedAddress(shared.k[0] + (warp * kWarpKeys + lane % 8 + lane / 16 * 8) * kRowPitch + lane / 8 % 2 * 8);
  const uint32_t v_at = SharedAddress(shared.v[0] + lane % 16 * kRowPitch + warp * kSlice + lane / 16 * 8);
  constexpr uint32_t kBufferBytes = sizeof(shared.k[0]);
  const auto compute_scores = [&](int block, float (&score)[2][4]) {
#pragma unroll
    for (int d = 0; d < kDim / 16; d++) {
      const uint32_t a[4] = {q[d][0], 0, q[d][1], 0};
      uint32_t b[4];
      LoadMatrices(b, k_at + static_cast<uint32_t>(block % kBuffers) * kBufferBytes + d * 16 * sizeof(bf16));
      Multiply(score[0], a, b[0], b[1]), Multiply(score[1], a, b[2], b[3]);
    }
  };
  const auto write_scores = [&](int block, const float (&score)[2][4]) {
    float* const to = shared.scores[block % 2][row] + warp * kWarpKeys + column * 2;
    *reinterpret_cast<float2*>(to) = {score[0][0], score[0][1]};
    *reinterpret_cast<float2*>(to + 8) = {score[1][0], score[1][1]};
  };
  WaitForCopies<kBuffers - 1>();
  __syncthreads();
  {
    float first[2][4] = {};
    compute_scores(0, first);
    write_scores(0, first);
  }

  float out[kSlice / 8][4] = {}, top = -INFINITY, sum = 0;
  const float to_log2 = o.scale * 1.4426950408889634f;
#pragma unroll 1
  for (int block = 0; block < blocks; block++) {
    WaitForCopies<kBuffers - 2>();
    __syncthreads();  // everybody's copies and scores are there, and everybody is done with the block before
    ask(block + kBuffers);
    float next[2][4] = {}, score[kKeys / 8][2];
    compute_scores(block + 1, next);  // for nothing after the last one
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
      const float2 pair = *reinterpret_cast<const float2*>(shared.scores[block % 2][row] + n * 8 + column * 2);
      const int key = block * kKeys + n * 8 + column * 2;
      score[n][0] = key <= position ? pair.x : -INFINITY, score[n][1] = key < position ? pair.y : -INFINITY;
    }
    float most = score[0][0];
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(score[n][0], score[n][1]));
    const float new_top = fmaxf(top, QuadMax(most)), shift = new_top * to_log2, factor = Exp2((top - new_top) * to_log2);
    float part = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) part += score[n][j] = Exp2(fmaf(score[n][j], to_log2, -shift));
    sum = fmaf(sum, factor, part), top = new_top;
#pragma unroll
    for (int e = 0; e < kSlice / 8; e++) out[e][0] *= factor, out[e][1] *= factor;
#pragma unroll
    for (int n = 0; n < kKeys / 16; n++) {
      const uint32_t a[4] = {PackPair(score[2 * n][0], score[2 * n][1]), 0, PackPair(score[2 * n + 1][0], score[2 * n + 1][1]), 0};
#pragma unroll
      for (int e = 0; e < kSlice / 8; e += 2) {
        uint32_t b[4];
        LoadTransposed(b, v_at + static_cast<uint32_t>(block % kBuffers) * kBufferBytes + (n * 16 * kRowPitch + e * 8) * sizeof(bf16));
        Multiply(out[e], a, b[0], b[1]), Multiply(out[e + 1], a, b[2], b[3]);
      }
    }
    write_scores(block + 1, next);
  }
  const float inverse = 1 / QuadSum(sum);
  if (row >= group) return;
  bf16* const y = o.y.Row(s.row) + static_cast<int64_t>(kv_head * group + row) * kDim + warp * kSlice + column * 2;
#pragma unroll
  for (int e = 0; e < kSlice / 8; e++) *reinterpret_cast<uint32_t*>(y + e * 8) = PackPair(out[e][0] * inverse, out[e][1] * inverse);
}

bool Fits(const AttentionOperands<bf16>& o) { return o.head_dim == kDim && o.heads / o.kv_heads <= kMostGroup; }

}  // namespace

bool DecodeAttention(State& state, const AttentionOperands<bf16>& o, bool store) {
  const int64_t sequences = o.batch.sequence_count, heads = sequences * o.kv_heads;
  if (!Fits(o) || sequences > 65535) return false;
  DecodePlan plan = {};
  plan.store = store;
  plan.least = 2;
  // The time of so many splits, in pages, of sequences of kPages (their length is not to be asked for): waves of blocks, each of a share and some overhead. A
  // wave that fills most of the places reads as fast as one that fills all.
  constexpr double kPages = 32, kOverhead = 1.6, kMost = 0.7;
  const int64_t places = int64_t{kResident} * state.sms();
  double least = 0;
  for (int splits = 1; splits <= kMostSplits; splits++) {
    const int64_t all = heads * splits, rest = all % places;
    const double share = kPages / splits, last = static_cast<double>(rest) / static_cast<double>(places);
    const double time = static_cast<double>(all / places) * (share + kOverhead) + (rest > 0 ? share * std::max(last, kMost) + kOverhead : 0);
    if (splits == 1 || time < least) plan.splits = splits, least = time;
  }
  const auto bytes_of = [&](int64_t splits) { return sequences * splits * o.heads * static_cast<int64_t>(sizeof(float) * kDim + sizeof(float2)); };
  while (plan.splits > 1 && bytes_of(plan.splits) > static_cast<int64_t>(State::kScratchBytes)) plan.splits /= 2;
  if (heads > State::kCounters) plan.splits = 1;
  plan.partial_out = reinterpret_cast<float*>(state.scratch());
  plan.partial = reinterpret_cast<float2*>(plan.partial_out + sequences * o.heads * plan.splits * kDim);
  const dim3 grid(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(sequences), static_cast<unsigned>(plan.splits));
  Launch(state, DecodeKernel, grid, kThreads, kUnusedBytes, o, plan);
  return true;
}

bool InvariantDecodeAttention(State& state, const AttentionOperands<bf16>& o, bool store) {
  if (!Fits(o) || o.batch.sequence_count > 65535) return false;
  const dim3 grid(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(o.batch.sequence_count));
  DecodePlan plan = {};
  plan.store = store;
  Launch(state, InvariantDecodeKernel, grid, kThreads, sizeof(InvariantShared), o, plan);
  return true;
}

}  // namespace bamba::cuda
