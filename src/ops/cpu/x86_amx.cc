// y = x Wᵀ + bias with AMX's TDPBF16PS. The canonical order of an output element: from 0 on, steps of 32 inputs, each one instruction's sum of 16 pairs (its
// own order is the processor's; the last step is padded with zeros); then the bias. The tile of an instruction is 16 outputs × up to 16 rows of x: W is the
// left operand, and x, rounded and packed by pairs, the right one, so that one row is a tile of one column.
#include <immintrin.h>

#include <algorithm>
#include <atomic>

#include "base/check.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/x86_bf16.h"
#include "ops/temporaries.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace bamba::cpu {
namespace {

constexpr int64_t kTile = 16, kStep = 32, kTwoTiles = 2 * kTile;  // rows or columns of a tile; inputs of an instruction
constexpr int64_t kTileFloats = kTile * kTile;

// What one thread multiplies at a time, by parts of the inputs: a part of W is copied by tiles for kTwoTiles outputs and stays in the first level cache while
// the rows of x run past it; a part of x and the sums stay in the second. The larger a piece, the less is read into that: a thread gets 10 to 20 GB/s from
// memory or the third level cache, but could multiply four pairs of tiles, 4 KB, in 30 ns. Where it is mapped, W's rows lie a multiple of 4 KB apart, and a
// tile of it would fall into one set of the first level cache.
constexpr int64_t kPartSteps = 16, kPart = kPartSteps * kStep, kPieceRowBlocks = 24, kPieceOutputBlocks = 12;
constexpr int64_t kPieceRows = kPieceRowBlocks * kTile, kPieceOutputs = kPieceOutputBlocks * kTwoTiles;
constexpr int64_t kFewestRowBlocks = 8;  // copying W costs as much as two or three of them

// The loads of tiles do not tell the compiler which memory they read; what it holds of that in registers, or believes unused, is written here.
inline void FlushToMemory() { asm volatile("" ::: "memory"); }

// The operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// 16 vectors of 16 numbers, turned. (The intrinsics take a mask of all lanes, as GCC 12 warns of the undefined numbers that their plain forms are made from.)
void Transpose(__m512 (&v)[kTile]) {
  constexpr __mmask16 kAll = 0xffff;
  constexpr __mmask8 kAllPairs = 0xff;
  __m512 t[kTile];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) t[i] = _mm512_maskz_unpacklo_ps(kAll, v[i], v[i + 1]), t[i + 1] = _mm512_maskz_unpackhi_ps(kAll, v[i], v[i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]), c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    v[i] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(kAllPairs, a, c)), v[i + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(kAllPairs, a, c));
    v[i + 2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(kAllPairs, b, d)), v[i + 3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(kAllPairs, b, d));
  }
  // Now v[4i + j] holds, in its block l of 128 bits, column 4l + j of rows 4i to 4i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512 low01 = _mm512_maskz_shuffle_f32x4(kAll, v[j], v[4 + j], 0x44), high01 = _mm512_maskz_shuffle_f32x4(kAll, v[j], v[4 + j], 0xee);
    const __m512 low23 = _mm512_maskz_shuffle_f32x4(kAll, v[8 + j], v[12 + j], 0x44), high23 = _mm512_maskz_shuffle_f32x4(kAll, v[8 + j], v[12 + j], 0xee);
    t[j] = _mm512_maskz_shuffle_f32x4(kAll, low01, low23, 0x88), t[4 + j] = _mm512_maskz_shuffle_f32x4(kAll, low01, low23, 0xdd);
    t[8 + j] = _mm512_maskz_shuffle_f32x4(kAll, high01, high23, 0x88), t[12 + j] = _mm512_maskz_shuffle_f32x4(kAll, high01, high23, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) v[i] = t[i];
}

// x in bf16 by parts of the inputs, within them by tiles of kTile rows, the last one smaller: [steps of the part, pairs of a step, rows of the tile, 2].
struct PackedRows {
  Bf16* data;
  int64_t rows, steps;

  int64_t TileRows(int64_t row) const { return std::min(kTile, rows - row); }
  Bf16* Tile(int64_t row, int64_t step) const {
    const int64_t in_part = step % kPartSteps, part = step - in_part;
    return data + (part * rows + std::min(kPartSteps, steps - part) * row + in_part * TileRows(row)) * kStep;
  }

  void Pack(const Tensor& x, int64_t row) const {
    const int64_t tile_rows = TileRows(row), k = x.cols();
    for (int64_t s = 0; s < steps; s++) {
      const int64_t left = k - s * kStep;
      Bf16* to = Tile(row, s);
      if (tile_rows == 1) {
        _mm512_storeu_si512(to, Rounded(x.Row<float>(row) + s * kStep, left));
        continue;
      }
      __m512 pairs[kTile];
      for (int64_t r = 0; r < kTile; r++)
        pairs[r] = r < tile_rows ? _mm512_castsi512_ps(Rounded(x.Row<float>(row + r) + s * kStep, left)) : _mm512_setzero_ps();
      Transpose(pairs);
      const __mmask16 present = static_cast<__mmask16>((1u << tile_rows) - 1);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kTile; i++) _mm512_mask_storeu_ps(to + 2 * i * tile_rows, present, pairs[i]);
    }
  }

 private:
  // kStep numbers, from `left` on zeros.
  static __m512i Rounded(const float* from, int64_t left) {
    if (left >= kStep) return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    const __mmask32 present = (__mmask32{1} << left) - 1;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(present), from);
    const __m512 high = left > 16 ? _mm512_maskz_loadu_ps(static_cast<__mmask16>(present >> 16), from + 16) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }
};

// A block of y is two tiles of outputs × one of rows, two tiles of sums. Names of tiles: 0 and 1 are the sums, 2 a part of W, 3 a part of x. No more: where two
// threads share a core, a tile can only be loaded while another is at work as long as the processor has one to spare, and each that is in use here isn't.
// (2 × 2 tiles load less, but are then half as fast.) Clears the tiles.
void Configure(int64_t rows) {
  TileConfig config;
  const auto row_bytes = static_cast<uint16_t>(rows * static_cast<int64_t>(sizeof(float)));
  for (int i : {0, 1, 3}) config.rows[i] = kTile, config.row_bytes[i] = row_bytes;
  config.rows[2] = kTile, config.row_bytes[2] = kStep * sizeof(Bf16);
  FlushToMemory();
  _tile_loadconfig(&config);
}

// Up to kTwoTiles rows of W, inputs [begin, begin + inputs), by tiles: [steps, kTwoTiles, kStep], padded with zeros in a step, with anything in the rows. Each
// line of the first `asking` rows asks for the one `ahead` numbers further on. kRows rows at a time: one for the sake of memory's pages, or several so that
// lines from the caches, when they are late, are waited for together.
template <int64_t kRows>
void PackOutputs(const Bf16* w, int64_t w_stride, int64_t outputs, int64_t inputs, int64_t asking, int64_t ahead, Bf16* to) {
  const int64_t full = inputs / kStep, rest = inputs % kStep;
  for (int64_t first = 0; first < outputs; first += kRows, w += kRows * w_stride, to += kRows * kStep) {
    const int64_t rows = std::min(kRows, outputs - first);
    for (int64_t s = 0; s < full; s++) {
      for (int64_t r = 0; r < rows; r++) {
        const Bf16* from = w + r * w_stride + s * kStep;
        if (first + r < asking) __builtin_prefetch(from + ahead, 0, 2);
        _mm512_store_si512(to + s * kTwoTiles * kStep + r * kStep, _mm512_loadu_si512(from));
      }
    }
    for (int64_t r = 0; rest && r < rows; r++)
      _mm512_store_si512(to + full * kTwoTiles * kStep + r * kStep, _mm512_maskz_loadu_epi16((__mmask32{1} << rest) - 1, w + r * w_stride + full * kStep));
  }
}

// What a block asks for on its way: of `rows` rows of W one line each at every step, and the sums of the block after it.
struct Ahead {
  const Bf16* w = nullptr;
  int64_t stride = 0, rows = 0;
  const float* sums = nullptr;
};

// Adds `steps` products of W's packed part and a tile of x to the sums, which are in their tiles. kPast: what is loaded of x shall not drive W out of the first
// level cache.
template <bool kTwoOutputs, bool kPast>
void AddSteps(const Bf16* w, const Bf16* x, int64_t rows, int64_t steps, const Ahead& ahead) {
  constexpr int64_t kBytes = static_cast<int64_t>(sizeof(Bf16)), kSumFloats = 2 * kTileFloats / kPartSteps, kLineFloats = 16;
  for (int64_t s = 0; s < steps; s++, w += kTwoTiles * kStep, x += kStep * rows) {
    for (int64_t r = 0; r < ahead.rows; r++) __builtin_prefetch(ahead.w + r * ahead.stride + s * kStep, 0, 2);
    if constexpr (kPast) {
      for (int64_t i = 0; i < kSumFloats; i += kLineFloats) __builtin_prefetch(ahead.sums + s * kSumFloats + i, 1, 3);
      _tile_stream_loadd(3, x, 2 * kBytes * rows);
    } else {
      _tile_loadd(3, x, 2 * kBytes * rows);
    }
    _tile_loadd(2, w, kStep * kBytes);
    _tile_dpbf16ps(0, 2, 3);
    if constexpr (kTwoOutputs) {
      _tile_loadd(2, w + kTile * kStep, kStep * kBytes);
      _tile_dpbf16ps(1, 2, 3);
    }
  }
}

template <bool kPast>
void AddSteps(const Bf16* w, int64_t outputs, const Bf16* x, int64_t rows, int64_t steps, const Ahead& ahead) {
  FlushToMemory();
  outputs > kTile ? AddSteps<true, kPast>(w, x, rows, steps, ahead) : AddSteps<false, kPast>(w, x, rows, steps, ahead);
}

// Tiles of sums from memory and to it: [outputs, rows], each row a cache line.
constexpr int64_t kSumBytes = kTile * sizeof(float);

void LoadSums(const float* sums, bool zeros) {
  if (zeros) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, sums, kSumBytes);
    _tile_loadd(1, sums + kTileFloats, kSumBytes);
  }
}

void StoreSums(float* sums) {
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums + kTileFloats, kSumBytes);
  FlushToMemory();
}

// Where a product goes: past the caches if it is larger than what they could hold until it is read.
struct Target {
  Tensor y;
  bool past_caches;

  explicit Target(const Tensor& y) : y(y), past_caches(y.bytes() > (size_t{8} << 20)) {}

  void Store(int64_t row, int64_t n, __mmask16 present, __m512 numbers) const {
    float* to = y.Row<float>(row) + n;
    if (past_caches && present == 0xffff && reinterpret_cast<uintptr_t>(to) % sizeof numbers == 0)
      _mm512_stream_ps(to, numbers);
    else
      _mm512_mask_storeu_ps(to, present, numbers);
  }
};

// y of one tile of sums, turned, with the bias of its outputs.
void Finish(const float* sums, const LinearWeight& w, int64_t outputs, const Target& target, int64_t row, int64_t rows, int64_t n) {
  const __mmask16 present = static_cast<__mmask16>((1u << outputs) - 1);
  float bias[kTile] = {};
  if (w.bias)
    Convert(static_cast<const char*>(w.bias.data()) + static_cast<size_t>(n) * SizeOf(w.bias.dtype()), w.bias.dtype(), bias, Dtype::kF32,
            static_cast<size_t>(outputs));
  const __m512 biases = _mm512_loadu_ps(bias);
  if (rows < 4) {
    const __m512i column = _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);
    for (int64_t r = 0; r < rows; r++) {
      const __m512 sum = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), present, column, sums + r, 4);
      target.Store(row + r, n, present, _mm512_add_ps(sum, biases));
    }
    return;
  }
  __m512 tile[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; i++) tile[i] = _mm512_load_ps(sums + i * kTile);
  Transpose(tile);
  for (int64_t r = 0; r < rows; r++) target.Store(row + r, n, present, _mm512_add_ps(tile[r], biases));
}

void FinishBlock(const float* sums, const LinearWeight& w, const Target& target, int64_t row, int64_t rows, int64_t n, int64_t outputs) {
  Finish(sums, w, std::min(kTile, outputs), target, row, rows, n);
  if (outputs > kTile) Finish(sums + kTileFloats, w, outputs - kTile, target, row, rows, n + kTile);
}

// Outputs of one matrix of several, whose outputs lie side by side in y.
struct Outputs {
  const LinearWeight& w;
  Target target;  // of that matrix
  int64_t begin, count;
};

// Matrices that the same x is multiplied with, cut into pieces of `step` outputs or fewer.
struct Matrices {
  std::span<const LinearWeight> w;
  const Tensor& y;
  int64_t step;

  int64_t pieces() const {
    int64_t sum = 0;
    for (const LinearWeight& one : w) sum += CeilDiv(one.weight.rows(), step);
    return sum;
  }
  Outputs Piece(int64_t i) const {
    int64_t column = 0;
    for (const LinearWeight& one : w) {
      const int64_t outputs = one.weight.rows(), count = CeilDiv(outputs, step);
      if (i < count) return {one, Target(y.Columns({column, outputs})), i * step, std::min(step, outputs - i * step)};
      i -= count, column += outputs;
    }
    CHECK(false);
  }
};

// All rows, at most kTwoTiles, × at most as many outputs. W comes from memory and is used once: a part asks for the next one, at last for that of the rows at
// `next`, which come after these; half of it while it is packed and half while it is multiplied, or memory would have nothing to do then.
void StreamPiece(const PackedRows& x, const Outputs& piece, const Bf16* next, Bf16* packed, int64_t& configured) {
  alignas(64) float sums[2][2 * kTileFloats];
  const int64_t k = piece.w.weight.cols(), stride = piece.w.weight.stride(0), half = piece.count / 2;
  const Bf16* from = piece.w.weight.Row<Bf16>(piece.begin);
  const bool one_tile = x.rows <= kTile;  // then its sums stay where they are
  for (int64_t begin = 0; begin < k; begin += kPart) {
    const int64_t inputs = std::min(kPart, k - begin);
    const int64_t ahead = begin + kPart < k ? kPart : next - from - begin;
    PackOutputs<1>(from + begin, stride, piece.count, inputs, half, ahead, packed);
    for (int64_t r = 0; r < x.rows; r += kTile) {
      const int64_t rows = x.TileRows(r);
      if (rows != configured) Configure(configured = rows);
      if (begin == 0 || !one_tile) LoadSums(sums[r / kTile], begin == 0);
      const Ahead others = {from + begin + half * stride + ahead, stride, piece.count - half};
      AddSteps<false>(packed, piece.count, x.Tile(r, begin / kStep), rows, CeilDiv(inputs, kStep), r == 0 ? others : Ahead());
      if (begin + kPart >= k || !one_tile) StoreSums(sums[r / kTile]);
    }
  }
  for (int64_t r = 0; r < x.rows; r += kTile) FinishBlock(sums[r / kTile], piece.w, piece.target, r, x.TileRows(r), piece.begin, piece.count);
}

// Each thread takes its next piece before it begins with one, to know what to ask memory for. No more threads than there is work for.
void Stream(ThreadPool& threads, const PackedRows& x, const Matrices& matrices, int64_t k) {
  const int64_t pieces = matrices.pieces(), most = std::min<int64_t>(threads.threads(), CeilDiv(pieces, Grain(matrices.step * k)));
  std::atomic<int64_t> taken{0};
  const auto take = [&] { return taken.fetch_add(1, std::memory_order_relaxed); };
  threads.For(most, 1, [&](int64_t, int64_t, int) {
    alignas(64) Bf16 packed[kPart * kTwoTiles];
    int64_t configured = 0;  // rows
    for (int64_t i = take(), next; i < pieces; i = next) {
      next = take();
      const Outputs piece = matrices.Piece(i), after = matrices.Piece(std::min(next, pieces - 1));
      StreamPiece(x, piece, after.w.weight.Row<Bf16>(after.begin), packed, configured);
    }
    _tile_release();
  });
}

// Rows [row, row + rows), at most kPieceRows, × at most kPieceOutputs outputs.
void MultiplyPiece(const PackedRows& x, const Outputs& piece, int64_t row, int64_t rows) {
  constexpr int64_t kBlockFloats = 2 * kTileFloats;
  alignas(64) Bf16 packed[kPart * kTwoTiles];
  alignas(64) float sums[kPieceRows * kPieceOutputs];
  const Tensor& w = piece.w.weight;
  const int64_t k = w.cols(), stride = w.stride(0);
  const int64_t ahead_rows = CeilDiv(kTwoTiles, CeilDiv(rows, kTile));  // that a block asks for, so that all do for what is packed next
  int64_t configured = 0;
  for (int64_t begin = 0; begin < k; begin += kPart) {
    const int64_t inputs = std::min(kPart, k - begin);
    float* block_sums = sums;
    for (int64_t i = 0; i < piece.count; i += kTwoTiles) {
      const int64_t outputs = std::min(kTwoTiles, piece.count - i);
      PackOutputs<4>(w.Row<Bf16>(piece.begin + i) + begin, stride, outputs, inputs, 0, 0, packed);
      const bool last = i + kTwoTiles >= piece.count;
      const Bf16* next = last ? w.Row<Bf16>(piece.begin) + begin + kPart : w.Row<Bf16>(piece.begin + i + kTwoTiles) + begin;
      const int64_t next_rows = last && begin + kPart >= k ? 0 : std::min(kTwoTiles, piece.count - (last ? 0 : i + kTwoTiles));
      for (int64_t r = 0; r < rows; r += kTile, block_sums += kBlockFloats) {
        const int64_t tile_rows = x.TileRows(row + r), ahead = r / kTile * ahead_rows;
        if (tile_rows != configured) Configure(configured = tile_rows);
        LoadSums(block_sums, begin == 0);
        AddSteps<true>(packed, outputs, x.Tile(row + r, begin / kStep), tile_rows, CeilDiv(inputs, kStep),
                       {next + ahead * stride, stride, std::clamp<int64_t>(next_rows - ahead, 0, ahead_rows), block_sums + kBlockFloats});
        StoreSums(block_sums);
        if (begin + kPart >= k) FinishBlock(block_sums, piece.w, piece.target, row + r, tile_rows, piece.begin + i, outputs);
      }
    }
  }
  _tile_release();
  _mm_sfence();
}

// The threads take blocks of rows, those of the same outputs one after the other: many at first, fewer towards the end, so that all end at about the same time.
void Multiply(ThreadPool& threads, const PackedRows& x, const Matrices& matrices) {
  const int64_t row_blocks = CeilDiv(x.rows, kTile), blocks = matrices.pieces() * row_blocks;
  std::atomic<int64_t> taken{0};
  threads.For(threads.threads(), 1, [&](int64_t, int64_t, int) {
    int64_t first = taken.load(std::memory_order_relaxed), count;
    while (first < blocks) {
      const int64_t most = std::clamp((blocks - first) / (2 * threads.threads()), kFewestRowBlocks, kPieceRowBlocks), left = row_blocks - first % row_blocks;
      count = CeilDiv(left, CeilDiv(left, most));
      if (!taken.compare_exchange_weak(first, first + count, std::memory_order_relaxed)) continue;
      const int64_t row = first % row_blocks * kTile;
      MultiplyPiece(x, matrices.Piece(first / row_blocks), row, std::min(count * kTile, x.rows - row));
      first = taken.load(std::memory_order_relaxed);
    }
  });
}

// Of no inputs: the bias alone.
void WriteBias(const LinearWeight& w, const Tensor& y) {
  alignas(64) const float zeros[kTileFloats] = {};
  for (int64_t n = 0; n < y.cols(); n += kTile)
    for (int64_t r = 0; r < y.rows(); r += kTile) Finish(zeros, w, std::min(kTile, y.cols() - n), Target(y), r, std::min(kTile, y.rows() - r), n);
}

}  // namespace

void LinearsAmx(Context& ctx, const Tensor& x, std::span<const LinearWeight> w, const Tensor& y) {
  const int64_t rows = x.rows(), k = x.cols(), threads = ctx.threads->threads();
  if (rows == 0) return;
  if (k == 0) {
    const Matrices matrices{w, y, y.cols()};
    for (int64_t i = 0; i < matrices.pieces(); i++) WriteBias(matrices.Piece(i).w, matrices.Piece(i).target.y);
    return;
  }
  Frame frame(ctx);
  const PackedRows packed{RoundedRows(ctx, rows, k).as<Bf16>(), rows, CeilDiv(k, kStep)};
  ctx.threads->For(CeilDiv(rows, kTile), Grain(kTile * k), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) packed.Pack(x, i * kTile);
  });
  const int64_t output_blocks = CeilDiv(y.cols(), kTwoTiles);
  if (rows <= kTwoTiles) {
    constexpr int64_t kPieces = 16;  // for each thread, so that all end at about the same time
    return Stream(*ctx.threads, packed, {w, y, output_blocks < kPieces * threads ? kTile : kTwoTiles}, k);
  }
  constexpr int64_t kPieces = 4;
  const int64_t pieces = output_blocks * CeilDiv(rows, kFewestRowBlocks * kTile);  // if each had one block of outputs and the fewest rows
  Multiply(*ctx.threads, packed, {w, y, std::clamp<int64_t>(pieces / (kPieces * threads), 1, kPieceOutputBlocks) * kTwoTiles});
}

}  // namespace bamba::cpu

#pragma GCC pop_options
