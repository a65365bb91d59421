#pragma once

#include "ops/cuda/async.cuh"
#include "ops/cuda/state.cuh"

// What the attention kernels share. Keys are taken in blocks of kKvBlock at absolute positions; a block is a page or, of a sequence without a slot, rows of the
// batch.
namespace bamba::cuda {

template <typename T>
struct AttentionOperands {
  MatrixView<const T> q, k, v;  // rows of the batch
  T *k_pages, *v_pages;
  int64_t k_page, v_page;  // numbers from page to page
  int64_t k_key, v_key;    // and from key to key in a page
  MatrixView<T> y;
  DeviceBatch batch;
  int32_t* counters;  // see State
  int heads, kv_heads, head_dim;
  float scale;
};

// Where a block of keys and values of one head lies: row i of each is key i of the block.
template <typename T>
struct KeyBlock {
  const T *k, *v;
  int64_t k_stride, v_stride;
};
// `page`: of the block, where the sequence has a slot.
template <typename T>
__device__ __forceinline__ KeyBlock<T> BlockOf(const AttentionOperands<T>& o, const DeviceSequence& s, int block, int page, int kv_head) {
  const int column = kv_head * o.head_dim;
  if (s.slot < 0) {
    const int64_t row = s.row + static_cast<int64_t>(block) * kKvBlock;
    return {o.k.Row(row) + column, o.v.Row(row) + column, o.k.stride, o.v.stride};
  }
  return {o.k_pages + page * o.k_page + column, o.v_pages + page * o.v_page + column, o.k_key, o.v_key};
}
template <typename T>
__device__ __forceinline__ int PageOf(const AttentionOperands<T>& o, const DeviceSequence& s, int block) {
  return s.slot < 0 ? 0 : o.batch.pages[s.first_page + block];
}

// Sequences of at least `least` rows are cut into tiles of some rows, which are numbered through the batch. Tile −1: there is none of that number.
// Called by whole warps.
struct RowTile {
  int sequence, first;  // its first row, within the sequence
};
__device__ __forceinline__ RowTile FindTile(const DeviceBatch& batch, int number, int tile_rows, int least) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < batch.sequence_count; base += 32) {
    const int rows = base + lane < batch.sequence_count ? batch.sequences[base + lane].rows : 0;
    const int own = rows >= least ? (rows + tile_rows - 1) / tile_rows : 0;
    int sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned beyond = __ballot_sync(~0u, before + sum > number);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1, of_sequence = __shfl_sync(~0u, own, at), end = before + __shfl_sync(~0u, sum, at);
      return {base + at, (number - (end - of_sequence)) * tile_rows};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0};
}
// How many tiles that makes.
inline int64_t TilesOf(const Batch& batch, int64_t tile_rows, int64_t least) {
  int64_t tiles = 0;
  for (const Sequence& s : batch.sequences)
    if (s.rows >= least) tiles += DivideUp(s.rows, tile_rows);
  return tiles;
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}
__device__ __forceinline__ void LoadTransposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}
// c [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
// Over the four lanes that share a row of a product.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Flash attention with bf16 matrix products (attention_flash.cu): head_dim a multiple of 16 up to 128, rows and pages aligned to 16 bytes. False where the
// shape is another.
bool FlashAttention(State& state, const AttentionOperands<bf16>& operands, const Batch& batch, bool invariant);

// The sequences of one row, heads of 128 with at most 8 query heads to a key head (attention_decode.cu): `store`: the new keys and values are taken from the
// batch and stored too, else they are in the pages already. False where the shape is another, or where FlashAttention does better.
bool DecodeAttention(State& state, const AttentionOperands<bf16>& operands, bool store);
// The same with the bits that FlashAttention's tiles of many rows give.
bool InvariantDecodeAttention(State& state, const AttentionOperands<bf16>& operands, bool store);

// The sequences of at least `least` rows, whose keys are in the pages, on Hopper (attention_hopper.cu): heads of 128. False where it can't be.
bool HopperAttention(State& state, const AttentionOperands<bf16>& operands, const Batch& batch, int least);

// Stores the batch's keys and values in the pages of their sequences.
template <typename T>
void StoreKeys(State& state, const AttentionOperands<T>& operands);

}  // namespace bamba::cuda
