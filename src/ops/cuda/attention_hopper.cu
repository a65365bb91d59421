#include <algorithm>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/wgmma.cuh"

// Flash attention for prompts on Hopper, heads of 128: as attention_flash.cu, with products of warpgroups (wgmma). A warpgroup of its own brings keys and values
// to shared memory; the others each have 64 rows, and issue the scores of a block before the output of the one before, so that the exponentials of one go on
// beside the products of the other.
namespace bamba::cuda {
namespace {

constexpr int kDim = 128, kGroupRows = 64;
// Shared memory holds rows of 64 columns, two halves of a head after each other, in units of 16 bytes: unit u of row r lies at u ^ r % 8, as wgmma's 128-byte
// swizzle has it.
constexpr int kHalf = 64 * 128, kTile = 2 * kHalf;  // bytes of 64 rows of half a head, and of a whole one
constexpr int kBuffers = 8;                         // of keys and values in turn
template <int kGroups>
constexpr size_t kSharedBytes = 1024 + (kGroups + kBuffers) * static_cast<size_t>(kTile);  // 1024: to align it

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int kKeys = static_cast<int>(kKvBlock);
constexpr int kAhead = 4;      // copies of tiles that may be on their way
constexpr int kLoaders = 128;  // threads

// The softmax of two rows of a thread so far.
struct Softmax {
  float top[2], sum[2];
};
// Scores become weights; `factor` is what the output so far is to be scaled by. last_key: that the rows see.
__device__ __forceinline__ void Weigh(float (&s)[32], Softmax* softmax, float (&factor)[2], float to_log2, bool masked, int first_key, const int (&last_key)[2]) {
  if (masked) {
#pragma unroll
    for (int i = 0; i < 32; i++)
      if (first_key + i / 4 * 8 + i % 2 > last_key[i / 2 % 2]) s[i] = -INFINITY;
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float most = fmaxf(s[2 * h], s[2 * h + 1]);
#pragma unroll
    for (int n = 1; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float top = fmaxf(softmax->top[h], most), shift = top * to_log2;
    factor[h] = Exp2((softmax->top[h] - top) * to_log2);
    float part[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float& x = s[4 * n + 2 * h + i];
        x = Exp2(fmaf(x, to_log2, -shift)), part[i] += x;
      }
    softmax->sum[h] = fmaf(softmax->sum[h], factor[h], part[0] + part[1]);
    softmax->top[h] = top;
  }
}
__device__ __forceinline__ void Pack(const float (&s)[32], uint32_t (&p)[kKeys / 16][4]) {
#pragma unroll
  for (int n = 0; n < kKeys / 16; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) p[n][i] = PackPair(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
}
#endif

// A block of threads has a tile of kGroups · 64 rows: row r is token r / group of the tile and query head r % group of the key head.
template <int kGroups>
__global__ void __launch_bounds__((kGroups + 1) * 128, 1) HopperKernel(const AttentionOperands<bf16> o, int tile_tokens, int least) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ alignas(8) uint64_t barriers[2 * kBuffers];
  const uint32_t q_tiles = (SharedAddress(shared) + 1023) / 1024 * 1024, buffers = q_tiles + kGroups * kTile;
  const auto full = [&](int tile) { return SharedAddress(barriers + tile % kBuffers); };
  const auto empty = [&](int tile) { return SharedAddress(barriers + kBuffers + tile % kBuffers); };
  const auto round = [](int tile) { return tile / kBuffers & 1; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBuffers; i++) InitBarrier(full(i), kLoaders), InitBarrier(empty(i), kGroups * 4);
  }
  __syncthreads();
  LetNextBegin();
  WaitForPrevious();

  const RowTile tile = FindTile(o.batch, static_cast<int>(gridDim.y - 1 - blockIdx.y), tile_tokens, least);  // the longest first
  if (tile.sequence < 0) return;
  const DeviceSequence s = o.batch.sequences[tile.sequence];
  const int kv_head = blockIdx.x, group = o.heads / o.kv_heads, count = min(tile_tokens, s.rows - tile.first);
  const int position = static_cast<int>(s.position) + tile.first, keys = position + count, blocks = (keys + kKeys - 1) / kKeys;
  const int64_t first_row = s.row + tile.first;
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0), thread = threadIdx.x % 128;

  if (warpgroup == kGroups) {  // tile 2 b is block b's keys, tile 2 b + 1 its values
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kGroups == 3 ? 32 : 40));
    const int column = thread % 16, row = thread / 16;  // and rows 8 further
    const uint32_t place = static_cast<uint32_t>(column / 8 * kHalf + row * 128 + (column % 8 ^ row) * 16);
    int next_page = PageOf(o, s, 0);
    KeyBlock<bf16> from = {};
    for (int t = 0; t < 2 * blocks + kAhead; t++) {
      if (t < 2 * blocks) {
        const int block = t / 2;
        if (t % 2 == 0) {
          from = BlockOf(o, s, block, next_page, kv_head);
          if (block + 1 < blocks) next_page = PageOf(o, s, block + 1);
        }
        const bf16* const data = t % 2 == 0 ? from.k : from.v;
        const int64_t stride = t % 2 == 0 ? from.k_stride : from.v_stride;
        WaitFor(empty(t), round(t) ^ 1);
        const uint32_t to = buffers + static_cast<uint32_t>(t % kBuffers) * kTile + place;
#pragma unroll
        for (int i = 0; i < kKeys / 8; i++) {
          const int key = row + 8 * i;
          const bool there = block * kKeys + key < keys;
          CopyAsync(to + i * 1024, data + (there ? key * stride : 0) + column * 8, there);
        }
      }
      CommitCopies();
      WaitForCopies<kAhead>();
      if (t >= kAhead) FenceForProducts(), Arrive(full(t - kAhead));
    }
    WaitForCopies<0>();
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kGroups == 3 ? 160 : 232));
  const int lane = threadIdx.x % 32, warp = thread / 32;
  const uint32_t q = q_tiles + static_cast<uint32_t>(warpgroup) * kTile;
  for (int i = thread; i < kGroupRows * 16; i += 128) {
    const int row = i / 16, column = i % 16, token = (warpgroup * kGroupRows + row) / group, head = (warpgroup * kGroupRows + row) % group;
    const bool there = token < count;
    CopyAsync(q + static_cast<uint32_t>(column / 8 * kHalf + row * 128 + (column % 8 ^ row % 8) * 16),
              o.q.Row(first_row + (there ? token : 0)) + static_cast<int64_t>(kv_head * group + head) * kDim + column * 8, there);
  }
  CommitCopies();
  WaitForCopies<0>();
  FenceForProducts();
  asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");

  // The tokens of this warpgroup; blocks that lie beyond the last are not its business (at most three: the loader has gone on to the end by then).
  const int first_token = min(count - 1, warpgroup * kGroupRows / group), last_token = min(count - 1, (warpgroup * kGroupRows + kGroupRows - 1) / group);
  const int own_blocks = (position + last_token) / kKeys + 1;
  int last_key[2];
#pragma unroll
  for (int h = 0; h < 2; h++)
    last_key[h] = position + min(count - 1, (warpgroup * kGroupRows + warp * 16 + h * 8 + lane / 4) / group) - lane % 4 * 2;  // of the lane's first column
  const float to_log2 = o.scale * 1.4426950408889634f;
  const auto masked = [&](int block) { return block * kKeys + kKeys - 1 > position + first_token; };
  const uint64_t q_descriptor = Describe(q);
  const auto scores_of = [&](float(&score)[32], int block) {
    const uint64_t k = Describe(buffers + static_cast<uint32_t>(2 * block % kBuffers) * kTile);
#pragma unroll
    for (int d = 0; d < kDim / 16; d++) {
      const uint64_t at = static_cast<uint64_t>((d / 4 * kHalf + d % 4 * 32) >> 4);
      Multiply<kKeys>(score, q_descriptor + at, k + at, d > 0);
    }
  };
  const auto add_values = [&](float(&out)[64], const uint32_t(&weights)[kKeys / 16][4], int block) {
    const uint64_t v = Describe(buffers + static_cast<uint32_t>((2 * block + 1) % kBuffers) * kTile, kHalf);
#pragma unroll
    for (int n = 0; n < kKeys / 16; n++) MultiplyColumns(out, weights[n], v + static_cast<uint64_t>((n * 16 * 128) >> 4));
  };

  float out[64], score[32], factor[2];
  uint32_t weights[kKeys / 16][4];
  Softmax softmax = {{-INFINITY, -INFINITY}, {0, 0}};
#pragma unroll
  for (int i = 0; i < 64; i++) out[i] = 0;
#pragma unroll
  for (int i = 0; i < 32; i++) score[i] = 0;
  WaitFor(full(0), 0);
  BeginProducts();
  scores_of(score, 0);
  CommitProducts();
  WaitForProducts<0>();
  Pin(score);
  if (lane == 0) Arrive(empty(0));
  Weigh(score, &softmax, factor, to_log2, masked(0), 0, last_key);
  Pack(score, weights);

#pragma unroll 1
  for (int block = 1; block < own_blocks; block++) {
    const int k = 2 * block, v = k - 1;
    WaitFor(full(k), round(k));
    Pin(score), Pin(out), Pin(weights);
    BeginProducts();
    scores_of(score, block);
    CommitProducts();
    WaitFor(full(v), round(v));
    add_values(out, weights, block - 1);
    CommitProducts();
    WaitForProducts<1>();
    Pin(score);
    if (lane == 0) Arrive(empty(k));
    Weigh(score, &softmax, factor, to_log2, masked(block), block * kKeys, last_key);
    WaitForProducts<0>();
    Pin(out), Pin(weights);
    if (lane == 0) Arrive(empty(v));
#pragma unroll
    for (int i = 0; i < 64; i++) out[i] *= factor[i / 2 % 2];
    Pack(score, weights);
  }
  const int last = 2 * own_blocks - 1;
  WaitFor(full(last), round(last));
  Pin(out), Pin(weights);
  BeginProducts();
  add_values(out, weights, own_blocks - 1);
  CommitProducts();
  WaitForProducts<0>();
  Pin(out);
  if (lane == 0) Arrive(empty(last));

#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = softmax.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float inverse = 1 / sum;
    const int r = warpgroup * kGroupRows + warp * 16 + h * 8 + lane / 4, token = r / group, head = r % group;
    if (token >= count) continue;
    bf16* const y = o.y.Row(first_row + token) + static_cast<int64_t>(kv_head * group + head) * kDim + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < kDim / 8; d++) *reinterpret_cast<uint32_t*>(y + d * 8) = PackPair(out[4 * d + 2 * h] * inverse, out[4 * d + 2 * h + 1] * inverse);
  }
#endif
}

template <int kGroups>
void Run(State& state, const AttentionOperands<bf16>& o, int64_t tiles, int least) {
  Launch(state, HopperKernel<kGroups>, dim3(static_cast<unsigned>(o.kv_heads), static_cast<unsigned>(tiles)), (kGroups + 1) * 128, kSharedBytes<kGroups>, o,
         kGroups * kGroupRows / (o.heads / o.kv_heads), least);
}

}  // namespace

bool HopperAttention(State& state, const AttentionOperands<bf16>& o, const Batch& batch, int least) {
  const int group = o.heads / o.kv_heads;
  if (!state.hopper() || o.head_dim != kDim || group > kGroupRows) return false;
  const int64_t tiles_of_two = TilesOf(batch, 2 * kGroupRows / group, least), tiles_of_three = TilesOf(batch, 3 * kGroupRows / group, least);
  if (tiles_of_two > 65535) return false;
  // Tiles of three warpgroups read each key for more rows; but few tiles may leave multiprocessors without any.
  const auto time = [&](int64_t tiles, int64_t rows) { return DivideUp(tiles * o.kv_heads, state.sms()) * rows; };
  const bool three = tiles_of_three * o.kv_heads >= 3 * state.sms() || time(tiles_of_three, 3) <= time(tiles_of_two, 2);
  three ? Run<3>(state, o, tiles_of_three, least) : Run<2>(state, o, tiles_of_two, least);
  return true;
}

}  // namespace bamba::cuda
