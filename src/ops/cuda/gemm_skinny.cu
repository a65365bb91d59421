#include <algorithm>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

// Blocks that stay, as many as fit: each makes tiles of 16·kOut outputs by all rows, one after the other. A piece of the inputs is a warp's, kWarps pieces are
// a round; after each, the block adds the pieces to the totals in their order. Weights go straight into registers, kDepth chunks of 64 inputs ahead, across
// tiles: loads are under way at all times. The first ones begin while the kernel ahead still runs.
constexpr int kWarps = 8, kThreads = kWarps * 32, kChunk = 64, kChunks = kPiece / kChunk;

__device__ __forceinline__ uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// 16 bytes of weights that no one reads again soon, or zeros. Not "nc": those loads the assembler moves behind WaitForPrevious.
__device__ __forceinline__ void LoadWeights(uint4& to, const bf16* from, bool there, uint64_t policy) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %6;\n"
      "}\n"
      : "=&r"(to.x), "=&r"(to.y), "=&r"(to.z), "=&r"(to.w)
      : "l"(from), "r"(static_cast<int>(there)), "l"(policy));
}

// What a warp reads of the weights in one round.
template <int kOut>
struct Source {
  const bf16* row[kOut][2];  // this lane's first input in rows g and g + 8 of each 16
  int left;                  // inputs from there to the end
};

__host__ __device__ constexpr int SumPitch(int out) { return 16 * out + 4; }  // four lanes' pairs of rows fall into different banks

template <int kOut, int kRow, int kDepth, bool kXShared, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) SkinnyKernel(Product p) {
  constexpr int kTile = 16 * kOut, kPitch = SumPitch(kOut), kElements = (kTile * kRow * 8 + kThreads - 1) / kThreads;
  extern __shared__ __align__(16) char shared[];
  LetNextBegin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int rows = static_cast<int>(p.rows), in = static_cast<int>(p.in), pieces = (in + kPiece - 1) / static_cast<int>(kPiece);
  const int rounds = (pieces + kWarps - 1) / kWarps, tiles = static_cast<int>((p.out + kTile - 1) / kTile);
  float* const sums = reinterpret_cast<float*>(shared);  // [2][kWarps][rows][kPitch]
  bf16* const xs = reinterpret_cast<bf16*>(shared + sizeof(float) * 2 * kWarps * kPitch * rows);
  const int x_pitch = pieces * static_cast<int>(kPiece) + 32;  // rows begin 64 bytes apart within 128: eight lanes read 16 bytes each from different banks
  const uint64_t policy = ReadOncePolicy();

  auto source_at = [&](int tile, int round) {
    Source<kOut> source;
    const int k = (round * kWarps + warp) * static_cast<int>(kPiece) + 8 * t;
    source.left = tile < tiles ? in - k : 0;
#pragma unroll
    for (int m = 0; m < kOut; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int64_t row = min(int64_t{tile} * kTile + m * 16 + h * 8 + g, p.out - 1);
        source.row[m][h] = static_cast<const bf16*>(p.w) + row * in + k;
      }
    return source;
  };
  uint4 ring[kDepth][kOut][2][2];
  auto load = [&](uint4(&to)[kOut][2][2], const Source<kOut>& source, int chunk) {
#pragma unroll
    for (int m = 0; m < kOut; m++)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int k = chunk * kChunk + j * 32;
          LoadWeights(to[m][h][j], source.row[m][h] + k, k < source.left, policy);
        }
  };

  int tile = static_cast<int>(blockIdx.x), round = 0;
  Source<kOut> now = source_at(tile, round);
#pragma unroll
  for (int c = 0; c < kDepth; c++) load(ring[c], now, c);
  WaitForPrevious();
  const bf16* const x = static_cast<const bf16*>(p.x);
  if constexpr (kXShared) {
    const int vectors = pieces * static_cast<int>(kPiece / 8);
    for (int r = 0; r < rows; r++)
      for (int v = static_cast<int>(threadIdx.x); v < vectors; v += kThreads)
        CopyAsync(xs + r * x_pitch + v * 8, v * 8 < in ? x + r * p.x_stride + v * 8 : x, v * 8 < in);
    CommitCopies();
    WaitForCopies<0>();
    __syncthreads();
  }
  const bf16* x_row[kRow];  // rows past the last repeat it: nothing of them is kept
#pragma unroll
  for (int n = 0; n < kRow; n++) {
    const int r = min(n * 8 + g, rows - 1);
    x_row[n] = (kXShared ? xs + r * x_pitch : x + r * p.x_stride) + 8 * t;
  }

  float total[kElements] = {};
  for (int buffer = 0; tile < tiles; buffer ^= 1) {
    const bool last = round + 1 == rounds;
    const int next_tile = last ? tile + static_cast<int>(gridDim.x) : tile, next_round = last ? 0 : round + 1;
    const Source<kOut> next = source_at(next_tile, next_round);
    const int piece = round * kWarps + warp;
    const bool mine = piece < pieces;
    float sum[kOut][kRow][4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; c++) {
      if (mine) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int k = piece * static_cast<int>(kPiece) + c * kChunk + j * 32;
          uint4 b[kRow];
#pragma unroll
          for (int n = 0; n < kRow; n++) {
            b[n] = kXShared || k + 8 * t < in ? *reinterpret_cast<const uint4*>(x_row[n] + k) : uint4{};
          }
#pragma unroll
          for (int m = 0; m < kOut; m++)
#pragma unroll
            for (int n = 0; n < kRow; n++) MmaPair(sum[m][n], ring[c % kDepth][m][0][j], ring[c % kDepth][m][1][j], b[n]);
        }
      }
      if (c + kDepth < kChunks) load(ring[c % kDepth], now, c + kDepth);
      else load(ring[c % kDepth], next, c + kDepth - kChunks);
    }

    float* const mine_sums = sums + (buffer * kWarps + warp) * rows * kPitch;
#pragma unroll
    for (int n = 0; n < kRow; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = n * 8 + 2 * t + i % 2;
        if (r < rows)
#pragma unroll
          for (int m = 0; m < kOut; m++) mine_sums[r * kPitch + m * 16 + i / 2 * 8 + g] = sum[m][n][i];
      }
    // One barrier a round: a buffer is written again after the next round's, which the threads that read it come to afterwards.
    __syncthreads();
    const int count = min(kWarps, pieces - round * kWarps);
#pragma unroll
    for (int e = 0; e < kElements; e++) {
      const int element = e * kThreads + static_cast<int>(threadIdx.x), r = element / kTile, o = element % kTile;
      if (r < rows) {
        const float* const from = sums + (buffer * kWarps * rows + r) * kPitch + o;
#pragma unroll
        for (int w = 0; w < kWarps; w++)
          if (w < count) total[e] += from[w * rows * kPitch];
        if (last) {
          const int64_t output = int64_t{tile} * kTile + o;
          if (output < p.out) StoreResult(p, r, output, total[e]);
          total[e] = 0;
        }
      }
    }
    tile = next_tile, round = next_round, now = next;
  }
}

int SharedLimit() {
  static const int limit = [] {
    int device = 0, bytes = 0;
    BAMBA_CUDA(cudaGetDevice(&device));
    BAMBA_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes;
  }();
  return limit;
}

template <int kOut, int kRow, int kDepth, bool kXShared, int kBlocks>
void Run(State& state, const Product& p, size_t shared) {
  const int64_t tiles = DivideUp(p.out, 16 * kOut);
  const int64_t blocks = shared * kBlocks + 2048 <= static_cast<size_t>(SharedLimit()) ? kBlocks : 1;
  Launch(state, SkinnyKernel<kOut, kRow, kDepth, kXShared, kBlocks>, static_cast<unsigned>(std::min(tiles, blocks * state.sms())), kThreads, shared, p);
}

}  // namespace

void SkinnyProduct(State& state, const Product& p) {
  CHECK(p.rows <= kSkinnyRows && p.in < (int64_t{1} << 30));
  const auto rows = static_cast<size_t>(p.rows), pieces = static_cast<size_t>(DivideUp(p.in, kPiece));
  const auto sums = [&](int out) { return sizeof(float) * 2 * kWarps * rows * static_cast<size_t>(SumPitch(out)); };
  const size_t with_x = sums(1) + rows * (pieces * kPiece + 32) * sizeof(bf16);
  if (with_x <= static_cast<size_t>(SharedLimit()) && rows <= 16) {
    if (rows <= 8) Run<1, 1, 4, true, 2>(state, p, with_x);
    else Run<1, 2, 4, true, 2>(state, p, with_x);
  } else if (rows <= 8) {
    Run<2, 1, 2, false, 2>(state, p, sums(2));
  } else if (rows <= 16) {
    Run<2, 2, 2, false, 2>(state, p, sums(2));
  } else if (rows <= 32) {
    Run<2, 4, 2, false, 1>(state, p, sums(2));
  } else if (sums(2) <= static_cast<size_t>(SharedLimit())) {
    Run<2, 8, 2, false, 1>(state, p, sums(2));
  } else {
    Run<1, 8, 2, false, 1>(state, p, sums(1));
  }
}

}  // namespace bamba::cuda
