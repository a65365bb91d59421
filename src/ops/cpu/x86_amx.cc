// y = x Wᵀ + bias with AMX's TDPBF16PS. The canonical order of an output element: from 0 on, steps of 32 inputs, each one instruction's sum of 16 pairs (its
// own order is the processor's; the last step is padded with zeros); then the bias. The tile of an instruction is 16 outputs × up to 16 rows of x: W is the
// left operand, loaded straight from where it is mapped, and x, rounded and packed by pairs, the right one, so that one row is a tile of one column.
#include <immintrin.h>

#include <algorithm>
#include <atomic>

#include "ops/cpu/rows.h"
#include "ops/cpu/x86_bf16.h"
#include "ops/temporaries.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace bamba::cpu {
namespace {

constexpr int64_t kTile = 16, kStep = 32, kTwoTiles = 2 * kTile;  // rows or columns of a tile; inputs of an instruction
constexpr int64_t kTileFloats = kTile * kTile;

// What one thread multiplies at a time, by parts of the inputs: a part of W is copied by tiles for kTwoTiles outputs, then multiplied with the rows of x, while
// the next ones are fetched; all of it and the sums stay in the second level cache. Where it is mapped, W's rows lie a multiple of 4 KB apart, and a tile of it
// would fall into one set of the first level cache.
constexpr int64_t kPartSteps = 32, kPieceRows = 256, kPieceOutputs = 128;

// Where all of x is two tiles, W comes from memory and is used once: short parts, each line asking for the one so many parts further on.
constexpr int64_t kStreamSteps = 8, kStreamAhead = 2;

// Steps of a row of x that are packed before the same steps of the next one: the tiles that they are scattered to stay in the first level cache.
constexpr int64_t kPackSteps = 16;

// The loads of tiles do not tell the compiler which memory they read; what it holds of that in registers, or believes unused, is written here.
inline void FlushToMemory() { asm volatile("" ::: "memory"); }

// The operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// x by tiles of kTile rows, the last one smaller: [steps, pairs of a step, rows of the tile, 2].
struct PackedRows {
  Bf16* data;
  int64_t rows, steps;

  int64_t TileRows(int64_t row) const { return std::min(kTile, rows - row); }
  Bf16* Tile(int64_t row, int64_t step) const { return data + row * steps * kStep + step * kStep * TileRows(row); }

  void Pack(const Tensor& x, int64_t row) const {
    const int64_t tile_rows = TileRows(row), k = x.cols();
    const __m512i to =
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(static_cast<int>(tile_rows)));
    for (int64_t first = 0; first < steps; first += kPackSteps) {
      for (int64_t r = 0; r < tile_rows; r++) {
        const float* from = x.Row<float>(row + r) + first * kStep;
        for (int64_t s = first; s < std::min(steps, first + kPackSteps); s++, from += kStep) {
          const int64_t left = k - s * kStep, low = std::min<int64_t>(left, 16), high = std::clamp<int64_t>(left - 16, 0, 16);
          const __m512 a = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << low) - 1), from);
          const __m512 b = high ? _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << high) - 1), from + 16) : _mm512_setzero_ps();
          _mm512_i32scatter_epi32(Tile(row, s) + 2 * r, to, (__m512i)_mm512_cvtne2ps_pbh(b, a), 4);
        }
      }
    }
  }
};

// Which tiles a block has: outputs and rows of x, of either's second tile perhaps 0.
struct BlockShape {
  int64_t outputs[2], rows[2];
  bool operator==(const BlockShape&) const = default;
};

BlockShape ShapeOf(int64_t outputs, int64_t rows) {
  return {{std::min(kTile, outputs), std::clamp<int64_t>(outputs - kTile, 0, kTile)}, {std::min(kTile, rows), std::clamp<int64_t>(rows - kTile, 0, kTile)}};
}

// Names of tiles: 2a + b are sums, 4 + a parts of W, 6 + b parts of x. Clears the tiles.
void Configure(const BlockShape& shape) {
  TileConfig config;
  for (int a = 0; a < 2; a++) {
    if (shape.outputs[a] == 0) continue;
    config.rows[4 + a] = static_cast<uint8_t>(shape.outputs[a]), config.row_bytes[4 + a] = kStep * sizeof(Bf16);
    for (int b = 0; b < 2; b++) {
      if (shape.rows[b] == 0) continue;
      config.rows[2 * a + b] = static_cast<uint8_t>(shape.outputs[a]);
      config.row_bytes[2 * a + b] = static_cast<uint16_t>(shape.rows[b] * static_cast<int64_t>(sizeof(float)));
      config.rows[6 + b] = kTile, config.row_bytes[6 + b] = config.row_bytes[2 * a + b];
    }
  }
  FlushToMemory();
  _tile_loadconfig(&config);
}

// Up to kTwoTiles rows of W, inputs [begin, begin + inputs), by tiles: [steps, kTwoTiles, kStep], padded with zeros. Each line asks for the one `ahead` numbers
// further on, if that isn't 0.
void PackOutputs(const Bf16* w, int64_t w_stride, int64_t outputs, int64_t inputs, int64_t ahead, Bf16* to) {
  const int64_t full = inputs / kStep, rest = inputs % kStep;
  for (int64_t r = 0; r < outputs; r++, w += w_stride, to += kStep) {
    for (int64_t s = 0; s < full; s++) {
      if (ahead != 0) __builtin_prefetch(w + s * kStep + ahead, 0, 2);
      _mm512_store_si512(to + s * kTwoTiles * kStep, _mm512_loadu_si512(w + s * kStep));
    }
    if (rest) _mm512_store_si512(to + full * kTwoTiles * kStep, _mm512_maskz_loadu_epi16((__mmask32{1} << rest) - 1, w + full * kStep));
  }
}

// Lines of W that a block asks for on its way: of `rows` rows, one each at every step.
struct Ahead {
  const Bf16* w = nullptr;
  int64_t stride = 0, rows = 0;
};

// Adds `steps` products of W's packed part and x to the sums, which are in their tiles.
template <bool kTwoOutputs, bool kTwoRows>
void AddSteps(const Bf16* w, const Bf16* const (&x)[2], const BlockShape& shape, int64_t steps, const Ahead& ahead) {
  constexpr int64_t kBytes = static_cast<int64_t>(sizeof(Bf16));
  const Bf16 *x0 = x[0], *x1 = x[1];
  const int64_t stride0 = 2 * kBytes * shape.rows[0], stride1 = 2 * kBytes * shape.rows[1], step0 = kStep * shape.rows[0], step1 = kStep * shape.rows[1];
  for (int64_t s = 0; s < steps; s++, w += kTwoTiles * kStep, x0 += step0, x1 += step1) {
    for (int64_t r = 0; r < ahead.rows; r++) __builtin_prefetch(ahead.w + r * ahead.stride + s * kStep, 0, 2);
    _tile_loadd(4, w, kStep * kBytes);
    _tile_loadd(6, x0, stride0);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoOutputs) {
      _tile_loadd(5, w + kTile * kStep, kStep * kBytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(7, x1, stride1);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwoOutputs) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

void AddSteps(const Bf16* w, const Bf16* const (&x)[2], const BlockShape& shape, int64_t steps, const Ahead& ahead = {}) {
  FlushToMemory();
  if (shape.outputs[1]) return shape.rows[1] ? AddSteps<true, true>(w, x, shape, steps, ahead) : AddSteps<true, false>(w, x, shape, steps, ahead);
  shape.rows[1] ? AddSteps<false, true>(w, x, shape, steps, ahead) : AddSteps<false, false>(w, x, shape, steps, ahead);
}

// Tiles of sums from memory and to it: tile (a, b) at sums + (2a + b) · kTileFloats, [outputs, rows].
constexpr int64_t kSumBytes = kTile * sizeof(float);

void LoadSums(const BlockShape& shape, const float* sums) {
  _tile_loadd(0, sums, kSumBytes);
  if (shape.rows[1]) _tile_loadd(1, sums + kTileFloats, kSumBytes);
  if (shape.outputs[1]) _tile_loadd(2, sums + 2 * kTileFloats, kSumBytes);
  if (shape.outputs[1] && shape.rows[1]) _tile_loadd(3, sums + 3 * kTileFloats, kSumBytes);
}

void StoreSums(const BlockShape& shape, float* sums) {
  _tile_stored(0, sums, kSumBytes);
  if (shape.rows[1]) _tile_stored(1, sums + kTileFloats, kSumBytes);
  if (shape.outputs[1]) _tile_stored(2, sums + 2 * kTileFloats, kSumBytes);
  if (shape.outputs[1] && shape.rows[1]) _tile_stored(3, sums + 3 * kTileFloats, kSumBytes);
  FlushToMemory();
}

void ZeroSums(const BlockShape& shape) {
  _tile_zero(0);
  if (shape.rows[1]) _tile_zero(1);
  if (shape.outputs[1]) _tile_zero(2);
  if (shape.outputs[1] && shape.rows[1]) _tile_zero(3);
}

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

// y of one tile of sums, turned, with the bias of its outputs.
void Finish(const float* sums, const LinearWeight& w, int64_t outputs, const Tensor& y, int64_t row, int64_t rows, int64_t n) {
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
      _mm512_mask_storeu_ps(y.Row<float>(row + r) + n, present, _mm512_add_ps(sum, biases));
    }
    return;
  }
  __m512 tile[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; i++) tile[i] = _mm512_load_ps(sums + i * kTile);
  Transpose(tile);
  for (int64_t r = 0; r < rows; r++) _mm512_mask_storeu_ps(y.Row<float>(row + r) + n, present, _mm512_add_ps(tile[r], biases));
}

void FinishBlock(const float* sums, const BlockShape& shape, const LinearWeight& w, const Tensor& y, int64_t row, int64_t n) {
  for (int a = 0; a < 2 && shape.outputs[a]; a++)
    for (int b = 0; b < 2 && shape.rows[b]; b++)
      Finish(sums + (2 * a + b) * kTileFloats, w, shape.outputs[a], y, row + b * kTile, shape.rows[b], n + a * kTile);
}

// All rows, at most kTwoTiles, × outputs [n, n + outputs), at most kTwoTiles: the sums stay in their tiles. Meanwhile memory is asked for the outputs from
// `next` on, which come after these.
void StreamPiece(const PackedRows& x, const LinearWeight& w, const Tensor& y, int64_t n, int64_t outputs, int64_t next, Bf16* packed, BlockShape& configured) {
  alignas(64) float sums[4 * kTileFloats];
  constexpr int64_t kPart = kStreamSteps * kStep, kAhead = kStreamAhead * kPart;
  const int64_t k = w.weight.cols(), stride = w.weight.stride(0);
  const BlockShape shape = ShapeOf(outputs, x.rows);
  if (shape != configured) Configure(configured = shape);
  ZeroSums(shape);
  const Bf16* from = w.weight.Row<Bf16>(n);
  for (int64_t begin = 0; begin < k; begin += kPart) {
    const int64_t inputs = std::min(kPart, k - begin);
    PackOutputs(from + begin, stride, outputs, inputs, begin + kAhead < k ? kAhead : (next - n) * stride + kAhead - k, packed);
    const Bf16* const xs[2] = {x.Tile(0, begin / kStep), shape.rows[1] ? x.Tile(kTile, begin / kStep) : x.data};
    AddSteps(packed, xs, shape, CeilDiv(inputs, kStep));
  }
  StoreSums(shape, sums);
  FinishBlock(sums, shape, w, y, 0, n);
}

// Each thread takes its next piece before it begins with one, to know what to ask memory for. No more threads than there is work for.
void Stream(ThreadPool& threads, const PackedRows& x, const LinearWeight& w, const Tensor& y) {
  constexpr int64_t kPieces = 16;  // for each thread, so that all end at about the same time
  const int64_t outputs = y.cols(), step = CeilDiv(outputs, kTwoTiles) < kPieces * threads.threads() ? kTile : kTwoTiles, pieces = CeilDiv(outputs, step);
  const int64_t most = std::min<int64_t>(threads.threads(), CeilDiv(pieces, Grain(step * w.weight.cols())));
  std::atomic<int64_t> taken{0};
  const auto take = [&] { return taken.fetch_add(step, std::memory_order_relaxed); };
  threads.For(most, 1, [&](int64_t, int64_t, int) {
    alignas(64) Bf16 packed[kStreamSteps * kTwoTiles * kStep];
    BlockShape configured = {};
    for (int64_t n = take(), next; n < outputs; n = next) {
      next = take();
      StreamPiece(x, w, y, n, std::min(step, outputs - n), next, packed, configured);
    }
    _tile_release();
  });
}

// Rows [row, row + rows) × outputs [n, n + outputs), at most kPieceRows × kPieceOutputs.
void MultiplyPiece(const PackedRows& x, const LinearWeight& w, const Tensor& y, int64_t row, int64_t rows, int64_t n, int64_t outputs) {
  constexpr int64_t kPart = kPartSteps * kStep;
  alignas(64) Bf16 packed[kPartSteps * kTwoTiles * kStep];
  alignas(64) float sums[kPieceRows * kPieceOutputs];
  const int64_t k = w.weight.cols(), stride = w.weight.stride(0), row_blocks = CeilDiv(rows, kTwoTiles);
  const int64_t ahead_rows = CeilDiv(kTwoTiles, row_blocks);  // that a block asks for, so that all do for what is packed next
  BlockShape configured = {};
  for (int64_t begin = 0; begin < k; begin += kPart) {
    const int64_t inputs = std::min(kPart, k - begin);
    for (int64_t i = 0; i < outputs; i += kTwoTiles) {
      const int64_t present = std::min(kTwoTiles, outputs - i);
      PackOutputs(w.weight.Row<Bf16>(n + i) + begin, stride, present, inputs, 0, packed);
      const bool last = i + kTwoTiles >= outputs;
      const Bf16* next = last ? w.weight.Row<Bf16>(n) + begin + kPart : w.weight.Row<Bf16>(n + i + kTwoTiles) + begin;
      const int64_t next_rows = last && begin + kPart >= k ? 0 : std::min(kTwoTiles, outputs - (last ? 0 : i + kTwoTiles));
      for (int64_t r = 0; r < rows; r += kTwoTiles) {
        const BlockShape shape = ShapeOf(present, rows - r);
        float* block_sums = sums + (i / kTwoTiles * row_blocks + r / kTwoTiles) * 4 * kTileFloats;
        if (shape != configured) Configure(configured = shape);
        begin == 0 ? ZeroSums(shape) : LoadSums(shape, block_sums);
        const int64_t ahead = r / kTwoTiles * ahead_rows;
        const Bf16* const xs[2] = {x.Tile(row + r, begin / kStep), shape.rows[1] ? x.Tile(row + r + kTile, begin / kStep) : x.data};
        AddSteps(packed, xs, shape, CeilDiv(inputs, kStep), {next + ahead * stride, stride, std::clamp<int64_t>(next_rows - ahead, 0, ahead_rows)});
        StoreSums(shape, block_sums);
        if (begin + kPart >= k) FinishBlock(block_sums, shape, w, y, row + r, n + i);
      }
    }
  }
  _tile_release();
}

// Of no inputs: the bias alone.
void WriteBias(const LinearWeight& w, const Tensor& y) {
  alignas(64) const float zeros[kTileFloats] = {};
  for (int64_t n = 0; n < y.cols(); n += kTile)
    for (int64_t r = 0; r < y.rows(); r += kTile) Finish(zeros, w, std::min(kTile, y.cols() - n), y, r, std::min(kTile, y.rows() - r), n);
}

}  // namespace

void LinearAmx(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), outputs = y.cols(), k = x.cols();
  if (rows == 0) return;
  if (k == 0) return WriteBias(w, y);
  Frame frame(ctx);
  const PackedRows packed{RoundedRows(ctx, rows, k).as<Bf16>(), rows, CeilDiv(k, kStep)};
  ctx.threads->For(CeilDiv(rows, kTile), Grain(kTile * k), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) packed.Pack(x, i * kTile);
  });
  if (rows <= kTwoTiles) return Stream(*ctx.threads, packed, w, y);
  const int64_t row_parts = CeilDiv(rows, kPieceRows);
  int64_t step = kPieceOutputs;
  while (step > kTwoTiles && CeilDiv(outputs, step) * row_parts < 4 * ctx.threads->threads()) step /= 2;
  ctx.threads->For(row_parts * CeilDiv(outputs, step), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / row_parts * step, row = i % row_parts * kPieceRows;
      MultiplyPiece(packed, w, y, row, std::min(kPieceRows, rows - row), n, std::min(step, outputs - n));
    }
  });
}

}  // namespace bamba::cpu

#pragma GCC pop_options
