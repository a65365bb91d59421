#include <algorithm>

#include "ops/cuda/attention.cuh"

// Attention of sequences of one row, heads of 128 and at most 8 query heads to a key head, with bf16 matrix products.
//
// DecodeKernel lives from bandwidth: keys and values go from memory to registers in the order in which the products take them, so a warp has little else to do
// than to read. InvariantDecodeAttention gives the bits of attention_flash.cu: scores and then, in the same chain of blocks of keys, values; what is spread over
// the multiprocessors is what the chain doesn't order, keys for the scores and columns for the values.
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
  float* scores;       // [sequences + pages, kv_heads, group, kKeys]
};

__device__ __forceinline__ uint4 Read16(const bf16* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}
__device__ __forceinline__ float2 Read8(const float* from) {
  float2 x;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(from));
  return x;
}
__device__ __forceinline__ uint2 Read8(const bf16* from) {
  uint2 x;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
  return x;
}
__device__ __forceinline__ uint32_t Word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }
__device__ __forceinline__ uint32_t Word(const uint2& x, int i) { return i == 0 ? x.x : x.y; }
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

// Where the scores of a block lie: each head's in a row. Padding has no pages.
__device__ __forceinline__ float* ScoresOf(const AttentionOperands<bf16>& o, const DecodePlan& plan, const DeviceSequence& s, int sequence, int block, int kv_head) {
  const int64_t entry = s.slot < 0 ? sequence : static_cast<int64_t>(o.batch.sequence_count) + s.first_page + block;
  return plan.scores + (entry * o.heads + kv_head * (o.heads / o.kv_heads)) * kKeys;
}

// A block of threads takes every so manieth page of one key head, a warp 16 keys of it. Products as in attention_flash.cu.
__global__ void __launch_bounds__(kThreads) ScoresKernel(const AttentionOperands<bf16> o, const DecodePlan plan) {
  constexpr int kPitch = kDim + 8, kUnits = kDim / 8;
  __shared__ __align__(16) bf16 q_rows[16 * kPitch], k_rows[kKeys * kPitch];
  LetNextBegin();
  WaitForPrevious();
  const DeviceSequence s = o.batch.sequences[blockIdx.y];
  const int position = static_cast<int>(s.position), blocks = position / kKeys + 1;
  if (s.rows != 1 || static_cast<int>(blockIdx.z) >= blocks) return;
  const int kv_head = blockIdx.x, group = o.heads / o.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (plan.store && s.slot >= 0 && (blocks - 1) % static_cast<int>(gridDim.z) == static_cast<int>(blockIdx.z)) StoreRow(o, s, position, kv_head);
  bf16* const own_rows = k_rows + warp * kWarpKeys * kPitch;
  const uint32_t q_at = SharedAddress(q_rows + lane % 16 * kPitch + lane / 16 * 8);
  const uint32_t k_at = SharedAddress(own_rows + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8);
  for (int i = threadIdx.x; i < 16 * kUnits; i += kThreads) {
    const int head = i / kUnits, column = i % kUnits * 8;
    *reinterpret_cast<uint4*>(q_rows + head * kPitch + column) =
        head < group ? *reinterpret_cast<const uint4*>(o.q.Row(s.row) + static_cast<int64_t>(kv_head * group + head) * kDim + column) : uint4{};
  }
  __syncthreads();
  for (int block = blockIdx.z; block < blocks; block += gridDim.z) {
    const int first_key = block * kKeys + warp * kWarpKeys;
    if (first_key > position) break;
    const KeyBlock<bf16> from = BlockOf(o, s, block, PageOf(o, s, block), kv_head);
    uint4 read[8];
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const int i = lane + 32 * n, key = i / kUnits, column = i % kUnits * 8;
      // The newest key lies in its row; those after it count for nothing.
      const bf16* const at = first_key + key < position ? from.k + (warp * kWarpKeys + key) * from.k_stride : o.k.Row(s.row) + kv_head * kDim;
      read[n] = Read16(at + column);
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 8; n++) *reinterpret_cast<uint4*>(own_rows + (lane + 32 * n) / kUnits * kPitch + (lane + 32 * n) % kUnits * 8) = read[n];
    __syncwarp();
    float score[2][4] = {};
#pragma unroll
    for (int d = 0; d < kDim / 16; d++) {
      uint32_t a[4], b[4];
      LoadMatrices(a, q_at + d * 16 * sizeof(bf16));
      LoadMatrices(b, k_at + d * 16 * sizeof(bf16));
      Multiply(score[0], a, b[0], b[1]), Multiply(score[1], a, b[2], b[3]);
    }
    if (lane / 4 < group) {
      float* const to = ScoresOf(o, plan, s, static_cast<int>(blockIdx.y), block, kv_head) + lane / 4 * kKeys + warp * kWarpKeys + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = {score[0][0], score[0][1]};
      *reinterpret_cast<float2*>(to + 8) = {score[1][0], score[1][1]};
    }
  }
}

// A block of threads has one key head, from the first block of keys to the last, some at a time: each warp turns the scores of one into weights, and then adds
// all of their values to kSlice columns of the output. Lane (row, column) has query head `row`, and brings 4 columns of the values at a time. Arithmetic as in
// attention_flash.cu. The newest keys and values are in the pages.
constexpr int kSlice = kDim / kWarps;
__global__ void __launch_bounds__(kThreads) ValuesKernel(const AttentionOperands<bf16> o, const DecodePlan plan) {
  __shared__ float tops[kWarps][kMostGroup], parts[kWarps][32];
  __shared__ uint4 weights[kWarps][2][32];
  LetNextBegin();
  const DeviceSequence s = o.batch.sequences[blockIdx.y];
  if (s.rows != 1) return;
  const int kv_head = static_cast<int>(blockIdx.x), group = o.heads / o.kv_heads;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4;
  const int position = static_cast<int>(s.position), blocks = position / kKeys + 1;
  // A sequence without pages has one key, its own.
  const bf16* const rows = (s.slot < 0 ? o.v.Row(s.row) : o.v_pages) + kv_head * kDim + warp * kSlice + row * 4;
  const int64_t page_stride = s.slot < 0 ? 0 : o.v_page;
  const int key_stride = s.slot < 0 ? 0 : static_cast<int>(o.v_key);
  PageList pages(o, s, 0, blocks);
  // Beyond the last block it is read again, for nothing; keys after the newest one weigh 0.
  uint2 v[kWarps][16];
  const auto read_values = [&](uint2(&values)[16], int asked) {
    const int block = min(asked, blocks - 1), newest = position - block * kKeys;
    const bf16* const from = rows + pages.Of(block) * page_stride;
#pragma unroll
    for (int n = 0; n < 16; n++) values[n] = Read8(from + static_cast<int64_t>(min(2 * column + n / 4 * 16 + n % 2 + n % 4 / 2 * 8, newest)) * key_stride);
  };
  float2 scores[8];
  const auto read_scores = [&](int asked) {
    // Rows beyond the group have those of others.
    const float* const from = ScoresOf(o, plan, s, static_cast<int>(blockIdx.y), min(asked, blocks - 1), kv_head) + min(row, group - 1) * kKeys + column * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) scores[n] = Read8(from + n * 8);
  };
  WaitForPrevious();
  read_scores(warp);
#pragma unroll
  for (int i = 0; i < kWarps; i++) read_values(v[i], i);

  float out[4][4], top = -INFINITY, sum = 0;
#pragma unroll
  for (int e = 0; e < 4; e++) out[e][0] = out[e][1] = out[e][2] = out[e][3] = 0;
  const float to_log2 = o.scale * 1.4426950408889634f;
#pragma unroll 1
  for (int base = 0; base < blocks; base += kWarps) {
    float score[8][2];
#pragma unroll
    for (int n = 0; n < 8; n++) score[n][0] = scores[n].x, score[n][1] = scores[n].y;
    read_scores(base + kWarps + warp);
    if ((base + warp) * kKeys + kKeys - 1 > position) {
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          if ((base + warp) * kKeys + n * 8 + column * 2 + j > position) score[n][j] = -INFINITY;
    }
    float most = score[0][0];
#pragma unroll
    for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(score[n][0], score[n][1]));
    most = QuadMax(most);
    if (column == 0) tops[warp][row] = most;
    __syncthreads();
    float factor[kWarps], shift = 0;
#pragma unroll
    for (int i = 0; i < kWarps; i++) {
      const float new_top = fmaxf(top, tops[i][row]);
      factor[i] = Exp2((top - new_top) * to_log2);
      if (i == warp) shift = new_top * to_log2;
      top = new_top;
    }
    float part = 0;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) part += score[n][j] = Exp2(fmaf(score[n][j], to_log2, -shift));
    parts[warp][lane] = part;
#pragma unroll
    for (int h = 0; h < 2; h++)
      weights[warp][h][lane] = {PackPair(score[4 * h][0], score[4 * h][1]), PackPair(score[4 * h + 1][0], score[4 * h + 1][1]),
                                PackPair(score[4 * h + 2][0], score[4 * h + 2][1]), PackPair(score[4 * h + 3][0], score[4 * h + 3][1])};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; i++) {
      if (base + i >= blocks) break;
      sum = fmaf(sum, factor[i], parts[i][lane]);
#pragma unroll
      for (int e = 0; e < 4; e++) out[e][0] *= factor[i], out[e][1] *= factor[i];
      const uint4 w[2] = {weights[i][0][lane], weights[i][1][lane]};
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const uint32_t a[4] = {Word(w[n / 2], n % 2 * 2), 0, Word(w[n / 2], n % 2 * 2 + 1), 0};
#pragma unroll
        for (int e = 0; e < 4; e++)
          Multiply(out[e], a, PairUp(Word(v[i][4 * n], e / 2), Word(v[i][4 * n + 1], e / 2), e % 2), PairUp(Word(v[i][4 * n + 2], e / 2), Word(v[i][4 * n + 3], e / 2), e % 2));
      }
      read_values(v[i], base + kWarps + i);
    }
  }
  const float inverse = 1 / QuadSum(sum);
  if (row >= group) return;
  // Column n of tile e is column 4 n + e of the slice: lane (row, column) has n = 2 column and 2 column + 1 of each tile.
  uint4 y;
  y.x = PackPair(out[0][0] * inverse, out[1][0] * inverse), y.y = PackPair(out[2][0] * inverse, out[3][0] * inverse);
  y.z = PackPair(out[0][1] * inverse, out[1][1] * inverse), y.w = PackPair(out[2][1] * inverse, out[3][1] * inverse);
  *reinterpret_cast<uint4*>(o.y.Row(s.row) + static_cast<int64_t>(kv_head * group + row) * kDim + warp * kSlice + column * 8) = y;
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
  const int64_t sequences = o.batch.sequence_count, heads = sequences * o.kv_heads;
  // With more, the chains of attention_flash.cu fill the multiprocessors as they are.
  if (!Fits(o) || heads > 4 * state.sms() || sequences > 65535) return false;
  if ((sequences + o.pages) * o.heads * kKeys * static_cast<int64_t>(sizeof(float)) > static_cast<int64_t>(State::kScratchBytes)) return false;
  DecodePlan plan = {};
  plan.store = store;
  plan.scores = reinterpret_cast<float*>(state.scratch());
  const auto splits = std::clamp<int64_t>(DivideUp(int64_t{8} * state.sms(), heads), 1, 65535);
  Launch(state, ScoresKernel, dim3(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(sequences), static_cast<unsigned>(splits)), kThreads, 0, o, plan);
  Launch(state, ValuesKernel, dim3(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(sequences)), kThreads, 0, o, plan);
  return true;
}

}  // namespace bamba::cuda
