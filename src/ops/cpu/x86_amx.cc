// y = x Wᵀ + bias with AMX's TDPBF16PS. The canonical order of an output element: from 0 on, steps of 32 inputs, each one instruction's sum of 16 pairs (its
// own order is the processor's; the last step is padded with zeros); then the bias. The tile of an instruction is 16 outputs × up to 16 rows of x: W is the
// left operand, loaded straight from where it is mapped, and x, rounded and packed by pairs, the right one, so that one row is a tile of one column.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "ops/cpu/rows.h"
#include "ops/cpu/x86_bf16.h"
#include "ops/temporaries.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace bamba::cpu {
namespace {

constexpr int64_t kTile = 16, kStep = 32, kTwoTiles = 2 * kTile;  // rows or columns of a tile; inputs of an instruction
constexpr int64_t kTileFloats = kTile * kTile;

// Blocks of x and W that are multiplied by one thread, by parts of the inputs: those of W and of two tiles of x stay in the first level cache, all of x and the
// sums in the second.
constexpr int64_t kPartSteps = 16, kPieceRows = 256, kPieceOutputs = 128;

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
    for (int64_t r = 0; r < tile_rows; r++) {
      const float* from = x.Row<float>(row + r);
      for (int64_t s = 0; s < steps; s++, from += kStep) {
        const int64_t left = k - s * kStep, low = std::min<int64_t>(left, 16), high = std::clamp<int64_t>(left - 16, 0, 16);
        const __m512 a = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << low) - 1), from);
        const __m512 b = high ? _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << high) - 1), from + 16) : _mm512_setzero_ps();
        _mm512_i32scatter_epi32(Tile(row, s) + 2 * r, to, (__m512i)_mm512_cvtne2ps_pbh(b, a), 4);
      }
    }
  }
};

// Up to two tiles of outputs times up to two of rows, over a part of the inputs. Sums: tile (a, b) at sums + (2a + b) · kTileFloats, [outputs, rows].
struct TileBlock {
  const Bf16* w;
  int64_t w_stride, outputs;
  const Bf16* x[2];
  int64_t x_rows[2];  // the second may be 0
  float* sums;
  int64_t inputs;
  bool first;        // sums begin at 0
  bool from_memory;  // W is not in a cache yet, and the kTwoTiles rows after these come next
};

// Names of tiles must be literals: 2a + b are sums, 4 + a parts of W, 6 + b parts of x.
template <bool kTwoOutputs, bool kTwoRows>
void AddStep(const Bf16* w, int64_t w_stride, const TileBlock& block, int64_t step) {
  const int64_t bytes = static_cast<int64_t>(sizeof(Bf16));
  _tile_loadd(4, w, w_stride * bytes);
  if constexpr (kTwoOutputs) _tile_loadd(5, w + kTile * w_stride, w_stride * bytes);
  _tile_loadd(6, block.x[0] + step * kStep * block.x_rows[0], 2 * bytes * block.x_rows[0]);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kTwoOutputs) _tile_dpbf16ps(2, 5, 6);
  if constexpr (kTwoRows) {
    _tile_loadd(7, block.x[1] + step * kStep * block.x_rows[1], 2 * bytes * block.x_rows[1]);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoOutputs) _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kTwoOutputs, bool kTwoRows>
void MultiplyBlock(const TileBlock& block) {
  const int64_t outputs[2] = {std::min(block.outputs, kTile), block.outputs - kTile};
  TileConfig config;
  for (int a = 0; a <= kTwoOutputs; a++) {
    config.rows[4 + a] = static_cast<uint8_t>(outputs[a]), config.row_bytes[4 + a] = kStep * sizeof(Bf16);
    for (int b = 0; b <= kTwoRows; b++) {
      config.rows[2 * a + b] = static_cast<uint8_t>(outputs[a]);
      config.row_bytes[2 * a + b] = static_cast<uint16_t>(block.x_rows[b] * static_cast<int64_t>(sizeof(float)));
      config.rows[6 + b] = kTile, config.row_bytes[6 + b] = config.row_bytes[2 * a + b];
    }
  }
  FlushToMemory();
  _tile_loadconfig(&config);  // clears the tiles
  constexpr int64_t kRowBytes = kTile * sizeof(float);
  if (!block.first) {
    _tile_loadd(0, block.sums, kRowBytes);
    if constexpr (kTwoRows) _tile_loadd(1, block.sums + kTileFloats, kRowBytes);
    if constexpr (kTwoOutputs) _tile_loadd(2, block.sums + 2 * kTileFloats, kRowBytes);
    if constexpr (kTwoOutputs && kTwoRows) _tile_loadd(3, block.sums + 3 * kTileFloats, kRowBytes);
  }
  const int64_t full = block.inputs / kStep, rest = block.inputs % kStep;
  for (int64_t s = 0; s < full; s++) {
    const Bf16* w = block.w + s * kStep;
    if (block.from_memory)
      for (int64_t r = kTwoTiles; r < kTwoTiles + block.outputs; r++) __builtin_prefetch(w + r * block.w_stride, 0, 2);
    AddStep<kTwoOutputs, kTwoRows>(w, block.w_stride, block, s);
  }
  if (rest) {
    alignas(64) Bf16 padded[kTwoTiles * kStep] = {};
    for (int64_t r = 0; r < block.outputs; r++)
      std::memcpy(static_cast<void*>(padded + r * kStep), block.w + r * block.w_stride + full * kStep, static_cast<size_t>(rest) * sizeof(Bf16));
    FlushToMemory();
    AddStep<kTwoOutputs, kTwoRows>(padded, kStep, block, full);
    FlushToMemory();
  }
  _tile_stored(0, block.sums, kRowBytes);
  if constexpr (kTwoRows) _tile_stored(1, block.sums + kTileFloats, kRowBytes);
  if constexpr (kTwoOutputs) _tile_stored(2, block.sums + 2 * kTileFloats, kRowBytes);
  if constexpr (kTwoOutputs && kTwoRows) _tile_stored(3, block.sums + 3 * kTileFloats, kRowBytes);
}

void Multiply(const TileBlock& block) {
  if (block.outputs > kTile) return block.x_rows[1] ? MultiplyBlock<true, true>(block) : MultiplyBlock<true, false>(block);
  block.x_rows[1] ? MultiplyBlock<false, true>(block) : MultiplyBlock<false, false>(block);
}

// y of one tile of sums, turned, with the bias of its outputs.
void Finish(const float* sums, const float* bias, int64_t outputs, const Tensor& y, int64_t row, int64_t rows, int64_t n) {
  const __m512i column = _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);
  const __mmask16 present = static_cast<__mmask16>((1u << outputs) - 1);
  const __m512 biases = _mm512_maskz_loadu_ps(present, bias);
  for (int64_t r = 0; r < rows; r++) {
    const __m512 sum = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), present, column, sums + r, 4);
    _mm512_mask_storeu_ps(y.Row<float>(row + r) + n, present, _mm512_add_ps(sum, biases));
  }
}

// Rows [row, row + rows) × outputs [n, n + outputs), at most kPieceRows × kPieceOutputs.
void MultiplyPiece(const PackedRows& x, const LinearWeight& w, const Tensor& y, int64_t row, int64_t rows, int64_t n, int64_t outputs) {
  alignas(64) float sums[kPieceRows * kPieceOutputs];
  const int64_t k = w.weight.cols(), row_blocks = CeilDiv(rows, kTwoTiles);
  // Where all of x is two tiles, W is read once, and its inputs needn't come in parts.
  const int64_t part = row_blocks == 1 ? std::max<int64_t>(k, 1) : kPartSteps * kStep;
  const auto sums_of = [&](int64_t i, int64_t r) { return sums + (i / kTwoTiles * row_blocks + r / kTwoTiles) * 4 * kTileFloats; };
  for (int64_t begin = 0; begin < std::max<int64_t>(k, 1); begin += part) {
    for (int64_t i = 0; i < outputs; i += kTwoTiles) {
      for (int64_t r = 0; r < rows; r += kTwoTiles) {
        TileBlock block{.w = w.weight.Row<Bf16>(n + i) + begin,
                        .w_stride = w.weight.stride(0),
                        .outputs = std::min(kTwoTiles, outputs - i),
                        .x = {x.Tile(row + r, begin / kStep), nullptr},
                        .x_rows = {std::min(kTile, rows - r), std::clamp<int64_t>(rows - r - kTile, 0, kTile)},
                        .sums = sums_of(i, r),
                        .inputs = std::min(part, k - begin),
                        .first = begin == 0,
                        .from_memory = r == 0};
        if (block.x_rows[1]) block.x[1] = x.Tile(row + r + kTile, begin / kStep);
        Multiply(block);
      }
    }
  }
  _tile_release();
  for (int64_t i = 0; i < outputs; i += kTile) {
    const int64_t count = std::min(kTile, outputs - i);
    float bias[kTile] = {};
    if (w.bias)
      Convert(static_cast<const char*>(w.bias.data()) + static_cast<size_t>(n + i) * SizeOf(w.bias.dtype()), w.bias.dtype(), bias, Dtype::kF32,
              static_cast<size_t>(count));
    for (int64_t r = 0; r < rows; r += kTile)
      Finish(sums_of(i, r) + (i / kTile % 2 * 2 + r / kTile % 2) * kTileFloats, bias, count, y, row + r, std::min(kTile, rows - r), n + i);
  }
}

}  // namespace

void LinearAmx(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), outputs = y.cols(), k = x.cols();
  if (rows == 0) return;
  Frame frame(ctx);
  const PackedRows packed{RoundedRows(ctx, rows, k).as<Bf16>(), rows, CeilDiv(k, kStep)};
  ctx.threads->For(CeilDiv(rows, kTile), Grain(kTile * k), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) packed.Pack(x, i * kTile);
  });
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
