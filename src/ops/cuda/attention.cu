#include "ops/cuda/attention.cuh"

// Attention of any shape, in f32 arithmetic and the canonical order: each block of kKvBlock keys has its own maximum, sum and output, which are combined in
// block order. What a row gets does not depend on the rows beside it.
namespace bamba::cuda {
namespace {

constexpr int kStoreThreads = 256;

// A block stores one row.
template <typename T, typename Unit>
__global__ void __launch_bounds__(kStoreThreads) StoreKeysKernel(const AttentionOperands<T> o) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const DeviceSequence& s = o.batch.sequences[o.batch.row_sequence[row]];
  if (s.slot < 0) return;
  const int64_t position = s.position + row - s.row;
  const int64_t page = o.batch.pages[s.first_page + position / kKvBlock], entry = position % kKvBlock;
  const Unit *k = reinterpret_cast<const Unit*>(o.k.Row(row)), *v = reinterpret_cast<const Unit*>(o.v.Row(row));
  Unit* to_k = reinterpret_cast<Unit*>(o.k_pages + page * o.k_page + entry * o.k_key);
  Unit* to_v = reinterpret_cast<Unit*>(o.v_pages + page * o.v_page + entry * o.v_key);
  const int units = static_cast<int>(o.kv_heads * o.head_dim * sizeof(T) / sizeof(Unit));
  for (int i = threadIdx.x; i < 2 * units; i += kStoreThreads) i < units ? void(to_k[i] = k[i]) : void(to_v[i - units] = v[i - units]);
}

constexpr int kWarps = 8, kWarpRows = 4, kTileRows = kWarps * kWarpRows;
constexpr int kKeys = static_cast<int>(kKvBlock);
static_assert(kKeys == 64, "two keys a lane");

__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// Keys or values of a block in f32, an odd number of floats apart so that 32 keys of one column lie in 32 banks.
template <typename T>
__device__ __forceinline__ void LoadBlock(const T* from, int64_t stride, int keys, int head_dim, int pitch, float* to) {
  for (int i = threadIdx.x; i < keys * head_dim; i += kWarps * 32) {
    const int key = i / head_dim, column = i - key * head_dim;
    to[key * pitch + column] = ToFloat(from[key * stride + column]);
  }
}

// A tile of kTileRows rows of one head; a warp has kWarpRows of them. Lane l takes keys l and l + 32 of a block for the scores, and columns l, l + 32, … of
// the output. head_dim ≤ 32 · kSpan.
template <typename T, int kSpan>
__global__ void __launch_bounds__(kWarps * 32) GeneralKernel(const AttentionOperands<T> o) {
  extern __shared__ float shared[];
  LetNextBegin();
  WaitForPrevious();
  const RowTile tile = FindTile(o.batch, static_cast<int>(gridDim.y - 1 - blockIdx.y), kTileRows, 1);
  if (tile.sequence < 0) return;
  const DeviceSequence s = o.batch.sequences[tile.sequence];
  const int head = blockIdx.x, kv_head = head / (o.heads / o.kv_heads), dim = o.head_dim, pitch = dim | 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = min(kTileRows, s.rows - tile.first), warp_rows = min(kWarpRows, rows - warp * kWarpRows);  // the latter may be negative
  const int64_t position = s.position + tile.first;  // of the tile's first row

  float* const block = shared;                                             // [kKeys][pitch]
  float* const q = block + kKeys * pitch + warp * kWarpRows * (dim + kKeys);  // [kWarpRows][dim]
  float* const p = q + kWarpRows * dim;                                    // [kWarpRows][kKeys]
  for (int r = 0; r < kWarpRows; r++)
    for (int i = lane; i < dim; i += 32)
      q[r * dim + i] = r < warp_rows ? ToFloat(o.q.Row(s.row + tile.first + warp * kWarpRows + r)[static_cast<int64_t>(head) * dim + i]) : 0;

  float top[kWarpRows], sum[kWarpRows], out[kWarpRows][kSpan];
#pragma unroll
  for (int r = 0; r < kWarpRows; r++) {
    top[r] = -INFINITY, sum[r] = 0;
#pragma unroll
    for (int c = 0; c < kSpan; c++) out[r][c] = 0;
  }
  const int blocks = static_cast<int>((position + rows - 1) / kKeys) + 1;
  for (int b = 0; b < blocks; b++) {
    const KeyBlock<T> from = BlockOf(o, s, b, PageOf(o, s, b), kv_head);
    const int64_t first_key = static_cast<int64_t>(b) * kKeys;
    const int keys = static_cast<int>(min(static_cast<int64_t>(kKeys), position + rows - first_key));  // that the tile's last row sees
    __syncthreads();  // the values before are done with
    LoadBlock(from.k, from.k_stride, keys, dim, pitch, block);
    __syncthreads();
    float before[kWarpRows], now[kWarpRows];
    int seen[kWarpRows];  // keys of this block that the row sees
    if (warp_rows > 0) {
      float score[kWarpRows][2];
#pragma unroll
      for (int r = 0; r < kWarpRows; r++) score[r][0] = score[r][1] = 0;
      // Rows of the block beyond `keys` hold what was there before; their scores are dropped below.
      for (int i = 0; i < dim; i++) {
        const float k0 = block[lane * pitch + i], k1 = block[(lane + 32) * pitch + i];
#pragma unroll
        for (int r = 0; r < kWarpRows; r++) score[r][0] = fmaf(q[r * dim + i], k0, score[r][0]), score[r][1] = fmaf(q[r * dim + i], k1, score[r][1]);
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; r++) {
        seen[r] = static_cast<int>(max(int64_t{0}, min(static_cast<int64_t>(kKeys), position + warp * kWarpRows + r + 1 - first_key)));
        seen[r] = r < warp_rows ? min(seen[r], keys) : 0;
        const float s0 = lane < seen[r] ? score[r][0] * o.scale : -INFINITY, s1 = lane + 32 < seen[r] ? score[r][1] * o.scale : -INFINITY;
        const float block_top = WarpMax(fmaxf(s0, s1));
        const float e0 = lane < seen[r] ? expf(s0 - block_top) : 0, e1 = lane + 32 < seen[r] ? expf(s1 - block_top) : 0;
        p[r * kKeys + lane] = e0, p[r * kKeys + lane + 32] = e1;
        const float block_sum = WarpSum(e0 + e1);
        if (seen[r] > 0) {
          const float new_top = fmaxf(top[r], block_top);
          before[r] = b == 0 ? 0 : expf(top[r] - new_top), now[r] = expf(block_top - new_top);
          sum[r] = b == 0 ? block_sum : sum[r] * before[r] + block_sum * now[r];
          top[r] = new_top;
        }
      }
    }
    __syncthreads();  // the keys are done with
    LoadBlock(from.v, from.v_stride, keys, dim, pitch, block);
    __syncthreads();
    if (warp_rows > 0) {
      float part[kWarpRows][kSpan];
#pragma unroll
      for (int r = 0; r < kWarpRows; r++)
#pragma unroll
        for (int c = 0; c < kSpan; c++) part[r][c] = 0;
      for (int key = 0; key < keys; key++) {
        float v[kSpan];
#pragma unroll
        for (int c = 0; c < kSpan; c++) v[c] = lane + 32 * c < dim ? block[key * pitch + lane + 32 * c] : 0;
#pragma unroll
        for (int r = 0; r < kWarpRows; r++)
          if (key < seen[r]) {
#pragma unroll
            for (int c = 0; c < kSpan; c++) part[r][c] = fmaf(p[r * kKeys + key], v[c], part[r][c]);
          }
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; r++)
        if (seen[r] > 0) {
#pragma unroll
          for (int c = 0; c < kSpan; c++) out[r][c] = b == 0 ? part[r][c] : fmaf(part[r][c], now[r], out[r][c] * before[r]);
        }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; r++)
    if (r < warp_rows) {
      T* y = o.y.Row(s.row + tile.first + warp * kWarpRows + r) + static_cast<int64_t>(head) * dim;
#pragma unroll
      for (int c = 0; c < kSpan; c++)
        if (lane + 32 * c < dim) y[lane + 32 * c] = FromFloat<T>(out[r][c] / sum[r]);
    }
}

template <typename T>
void GeneralAttention(State& state, const AttentionOperands<T>& o, const Batch& batch) {
  const int dim = o.head_dim;
  CHECK_MSG(dim <= 256, "heads of {} columns; at most 256", dim);
  const size_t bytes = sizeof(float) * static_cast<size_t>(kKeys * (dim | 1) + kTileRows * (dim + kKeys));
  const int64_t tiles = TilesOf(batch, kTileRows, 1);
  CHECK_MSG(tiles <= 65535, "{} rows in one call", o.batch.rows);
  const dim3 grid(static_cast<unsigned>(o.heads), static_cast<unsigned>(tiles));
  const auto run = [&](auto span) { Launch(state, GeneralKernel<T, decltype(span)::value>, grid, kWarps * 32, bytes, o); };
  if (dim <= 32) run(std::integral_constant<int, 1>());
  else if (dim <= 64) run(std::integral_constant<int, 2>());
  else if (dim <= 128) run(std::integral_constant<int, 4>());
  else run(std::integral_constant<int, 8>());
}

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

template <typename T>
void StoreKeys(State& state, const AttentionOperands<T>& o) {
  if (!o.k_pages) return;
  constexpr int64_t kUnit = 16 / sizeof(T);
  const bool wide = Aligned(o.k.data) && Aligned(o.v.data) && Aligned(o.k_pages) && Aligned(o.v_pages) && o.k.stride % kUnit == 0 && o.v.stride % kUnit == 0 &&
                    o.k_page % kUnit == 0 && o.v_page % kUnit == 0 && o.k_key % kUnit == 0 && o.v_key % kUnit == 0 && o.kv_heads * o.head_dim % kUnit == 0;
  const auto rows = static_cast<unsigned>(o.batch.rows);
  wide ? Launch(state, StoreKeysKernel<T, uint4>, rows, kStoreThreads, 0, o) : Launch(state, StoreKeysKernel<T, T>, rows, kStoreThreads, 0, o);
}

void Attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape, const Batch& batch, const KvPages& kv,
               const Tensor& y) {
  State& state = StateOf(ctx);
  if (q.rows() == 0) return;
  CHECK(state.batch().rows == q.rows() && (!kv.k || (kv.k.dtype() == ctx.dtype && kv.v.dtype() == ctx.dtype)));
  WithActivation(ctx.dtype, [&](auto t) {
    using T = decltype(t);
    AttentionOperands<T> o = {};
    o.q = ViewOf<const T>(q), o.k = ViewOf<const T>(k), o.v = ViewOf<const T>(v), o.y = ViewOf<T>(y);
    if (kv.k) {
      o.k_pages = static_cast<T*>(kv.k.data()), o.v_pages = static_cast<T*>(kv.v.data());
      o.k_page = kv.k.stride(0), o.v_page = kv.v.stride(0), o.k_key = kv.k.stride(1), o.v_key = kv.v.stride(1);
    }
    o.batch = state.batch(), o.counters = state.counters();
    o.heads = static_cast<int>(shape.heads), o.kv_heads = static_cast<int>(shape.kv_heads), o.head_dim = static_cast<int>(shape.head_dim);
    o.scale = static_cast<float>(shape.scale);
    if constexpr (std::is_same_v<T, bf16>)
      if (FlashAttention(state, o, batch, ctx.invariant)) return;
    StoreKeys(state, o);
    GeneralAttention(state, o, batch);
  });
}

template void StoreKeys(State& state, const AttentionOperands<bf16>& operands);

}  // namespace bamba::cuda
