// y = x Wᵀ + bias with VDPBF16PS. The canonical order of an output element: 16 partial sums, lane l over the pairs k = 2l, 2l + 32, 2l + 64, …, each a chain of
// dot products of pairs from 0 (the last vector padded with zeros); then the lanes are added by one fixed tree, then the bias.
#include "ops/cpu/x86_bf16.h"

#include <immintrin.h>

#include <algorithm>

#include "ops/cpu/rows.h"
#include "ops/temporaries.h"

// For templates and all that they inline, which attributes of single functions would not reach.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")

namespace bamba::cpu {
namespace {

constexpr int64_t kPairs = 32;  // bf16 numbers of a vector, and of a cache line
constexpr int kTileRows = 6, kGroup = 4, kBlock = 8;
constexpr int kTileSums = kTileRows * kGroup;

// Many rows: a part of W is copied to a panel of vectors in the order in which they are used, and stays in the second level cache, one group of it and one tile
// of x in the first.
constexpr int64_t kPanelVectors = 32, kPanelRows = 48, kPanelOutputs = 32, kManyRows = 24;

// Few rows: outputs of a thread's turn, whose sums are kept between parts of the inputs; vectors of such a part of a tile of x, which stays in the first level
// cache while the weight runs through it.
constexpr int64_t kStreamOutputs = 32, kStreamVectors = 128;

int64_t Vectors(int64_t k) { return (k + kPairs - 1) / kPairs; }

__m512i LoadPart(const Bf16* p, int64_t n) { return _mm512_maskz_loadu_epi16(n >= kPairs ? ~__mmask32{0} : (__mmask32{1} << n) - 1, p); }

// Rows of x are kept by tiles: [vectors, rows of the tile, kPairs], so that a tile is read in one stream.
void RoundTile(const Tensor& x, int64_t row, int64_t rows, Bf16* to) {
  const int64_t k = x.cols();
  for (int64_t i = 0; i < k; i += kPairs) {
    for (int64_t r = 0; r < rows; r++, to += kPairs) {
      const float* from = x.Row<float>(row + r) + i;
      const int64_t low = std::clamp<int64_t>(k - i, 0, 16), high = std::clamp<int64_t>(k - i - 16, 0, 16);
      const __m512 a = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << low) - 1), from);
      const __m512 b = high ? _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << high) - 1), from + 16) : _mm512_setzero_ps();
      _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
  }
}

// Which part of the inputs a tile is given.
struct Place {
  bool first, last;
};

// Tiles of x [kRows] times outputs of W [kOutputs] over `vectors`; vector i of output j lies at w[j] + i · w_step, that of row r at x + (i · kRows + r) ·
// kPairs.
template <int kRows, int kOutputs>
struct Sums {
  __m512 at[kRows][kOutputs];

  void Zero() {
#pragma GCC unroll 6
    for (auto& row : at)
#pragma GCC unroll 8
      for (auto& sum : row) sum = _mm512_setzero_ps();
  }

  void AddVector(const Bf16* x, const __m512i (&w)[kOutputs]) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
      const __m512bh xs = (__m512bh)_mm512_loadu_si512(x + r * kPairs);
#pragma GCC unroll 8
      for (int j = 0; j < kOutputs; j++) at[r][j] = _mm512_dpbf16_ps(at[r][j], xs, (__m512bh)w[j]);
    }
  }

  template <bool kStore>
  void Keep(float* memory) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
      for (int j = 0; j < kOutputs; j++) {
        float* place = memory + (r * kOutputs + j) * 16;
        if constexpr (kStore)
          _mm512_store_ps(place, at[r][j]);
        else
          at[r][j] = _mm512_load_ps(place);
      }
  }

  // Adds the lanes of four outputs at a time: blocks of 128 bits, halves, then neighbours.
  void Finish(const float* bias, float* y, int64_t y_stride, int64_t outputs) const {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
      for (int j = 0; j < kOutputs; j += kGroup) {
        __m128 quarter[kGroup];
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; i++) {
          const __m512 all = at[r][j + i];
          // With a mask, as GCC 12 warns of the undefined numbers that the plain form is made from.
          const __m256 half = _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xff, _mm512_castps_pd(all), 0)) +
                              _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xff, _mm512_castps_pd(all), 1));
          quarter[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        }
        _MM_TRANSPOSE4_PS(quarter[0], quarter[1], quarter[2], quarter[3]);
        const __m128 sum = _mm_add_ps(_mm_add_ps(quarter[0], quarter[2]), _mm_add_ps(quarter[1], quarter[3]));
        const __mmask8 present = static_cast<__mmask8>((1 << std::clamp<int64_t>(outputs - j, 0, kGroup)) - 1);
        _mm_mask_storeu_ps(y + r * y_stride + j, present, _mm_add_ps(sum, _mm_loadu_ps(bias + j)));
      }
    }
  }
};

// Few rows: a part of the inputs, W from memory. Each line that is read asks for the one `ahead` numbers further on; past the last output its row is read
// again, for nothing.
template <int kRows, int kOutputs>
void StreamTile(const Bf16* x, int64_t k, const Bf16* w, int64_t w_stride, int64_t ahead, int64_t outputs, float* kept, Place place, const float* bias,
                float* y, int64_t y_stride) {
  Sums<kRows, kOutputs> sums;
  if (place.first)
    sums.Zero();
  else
    sums.template Keep<false>(kept);
  const Bf16* row[kOutputs];
#pragma GCC unroll 8
  for (int j = 0; j < kOutputs; j++) row[j] = w + std::min<int64_t>(j, outputs - 1) * w_stride;
  __m512i ws[kOutputs];
  int64_t i = 0;
  for (; i + kPairs <= k; i += kPairs, x += kRows * kPairs) {
#pragma GCC unroll 8
    for (int j = 0; j < kOutputs; j++) {
      __builtin_prefetch(row[j] + i + ahead, 0, 2);
      ws[j] = _mm512_loadu_si512(row[j] + i);
    }
    sums.AddVector(x, ws);
  }
  if (i < k) {
#pragma GCC unroll 8
    for (int j = 0; j < kOutputs; j++) ws[j] = LoadPart(row[j] + i, k - i);
    sums.AddVector(x, ws);
  }
  if (place.last)
    sums.Finish(bias, y, y_stride, outputs);
  else
    sums.template Keep<true>(kept);
}

template <int kRows>
void PanelTile(const Bf16* x, const Bf16* w, int64_t vectors, float* kept, Place place, const float* bias, float* y, int64_t y_stride, int64_t outputs) {
  Sums<kRows, kGroup> sums;
  if (place.first)
    sums.Zero();
  else
    sums.template Keep<false>(kept);
  for (int64_t i = 0; i < vectors; i++, x += kRows * kPairs, w += kGroup * kPairs) {
    __m512i ws[kGroup];
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; j++) ws[j] = _mm512_load_si512(w + j * kPairs);
    sums.AddVector(x, ws);
  }
  if (place.last)
    sums.Finish(bias, y, y_stride, outputs);
  else
    sums.template Keep<true>(kept);
}

// Calls function(constant) for rows = 1 … kTileRows.
template <int kRows = kTileRows, typename Function>
void WithTileRows(int64_t rows, const Function& function) {
  if constexpr (kRows > 1)
    if (rows < kRows) return WithTileRows<kRows - 1>(rows, function);
  function(std::integral_constant<int, kRows>());
}

struct Product {
  const Bf16* x;      // rounded, by tiles of tile_rows rows
  int64_t tile_rows;  // the last tile may have fewer
  const LinearWeight& w;
  const Tensor& y;

  const Bf16* Tile(int64_t row) const { return x + row * Vectors(w.weight.cols()) * kPairs; }

  void LoadBias(int64_t n, int64_t outputs, float* to, int64_t room) const {
    std::fill(to, to + room, 0.0f);
    if (w.bias)
      Convert(static_cast<const char*>(w.bias.data()) + static_cast<size_t>(n) * SizeOf(w.bias.dtype()), w.bias.dtype(), to, Dtype::kF32,
              static_cast<size_t>(outputs));
  }

  // Rows × outputs [begin, end), at most kStreamOutputs.
  void Stream(int64_t begin, int64_t end) const {
    alignas(64) float kept[kTileRows * kStreamOutputs * 16];
    const int64_t k = w.weight.cols(), stride = w.weight.stride(0), rows = y.rows();
    float bias[kStreamOutputs];
    LoadBias(begin, end - begin, bias, kStreamOutputs);
    for (int64_t r = 0; r < rows; r += tile_rows) {
      WithTileRows(
          std::min(tile_rows, rows - r), [&](auto count) __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) {
            constexpr int kRows = decltype(count)::value, kOutputs = kRows * kBlock <= kTileSums ? kBlock : kGroup;
            constexpr int64_t kPart = kStreamVectors / kRows * kPairs;
            for (int64_t i = 0; i == 0 || i < k; i += kPart) {
              const Place place = {i == 0, i + kPart >= k};
              // The next part of these outputs, or the first one of those that come next.
              const int64_t ahead = place.last ? (end - begin) * stride - i : kPart;
              for (int64_t n = begin; n < end; n += kOutputs)
                StreamTile<kRows, kOutputs>(Tile(r) + i * kRows, std::min(kPart, k - i), w.weight.Row<Bf16>(n) + i, stride, ahead,
                                            std::min<int64_t>(kOutputs, end - n), kept + (n - begin) * kRows * 16, place, bias + n - begin, y.Row<float>(r) + n,
                                            y.stride(0));
            }
          });
    }
  }

  // Rows [row, row + rows), which begin and end with tiles, × outputs [n, n + outputs), at most kPanelRows × kPanelOutputs.
  void Panels(int64_t row, int64_t rows, int64_t n, int64_t outputs) const {
    alignas(64) Bf16 panel[kPanelOutputs * kPanelVectors * kPairs];
    alignas(64) float kept[kPanelRows * kPanelOutputs * 16];
    float bias[kPanelOutputs];
    LoadBias(n, outputs, bias, kPanelOutputs);
    const int64_t k = w.weight.cols(), all = Vectors(k);
    for (int64_t v = 0; v < all; v += kPanelVectors) {
      const int64_t vectors = std::min(kPanelVectors, all - v);
      for (int64_t j = 0; j < CeilDiv(outputs, kGroup) * kGroup; j++) {
        const Bf16* from = w.weight.Row<Bf16>(n + std::min(j, outputs - 1));
        Bf16* to = panel + (j / kGroup * vectors * kGroup + j % kGroup) * kPairs;
        for (int64_t i = 0; i < vectors; i++) _mm512_store_si512(to + i * kGroup * kPairs, LoadPart(from + (v + i) * kPairs, k - (v + i) * kPairs));
      }
      for (int64_t r = 0; r < rows; r += tile_rows) {
        WithTileRows(
            std::min(tile_rows, rows - r), [&](auto count) __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) {
              constexpr int kRows = decltype(count)::value;
              for (int64_t j = 0; j < outputs; j += kGroup)
                PanelTile<kRows>(Tile(row + r) + v * kRows * kPairs, panel + j * vectors * kPairs, vectors, kept + (r * kPanelOutputs + j * kRows) * 16,
                                 {v == 0, v + vectors == all}, bias + j, y.Row<float>(row + r) + n + j, y.stride(0), std::min<int64_t>(kGroup, outputs - j));
            });
      }
    }
  }
};

}  // namespace

void LinearAvx512Bf16(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), outputs = y.cols(), k = x.cols();
  if (rows == 0) return;
  Frame frame(ctx);
  Bf16* rounded = RoundedRows(ctx, rows, k).as<Bf16>();
  const int64_t tile_rows = CeilDiv(rows, CeilDiv(rows, kTileRows)), tiles = CeilDiv(rows, tile_rows);
  const Product product{rounded, tile_rows, w, y};
  ctx.threads->For(tiles, Grain(tile_rows * k), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) RoundTile(x, i * tile_rows, std::min(tile_rows, rows - i * tile_rows), rounded + i * tile_rows * Vectors(k) * kPairs);
  });
  if (rows < kManyRows || k == 0) {
    // Small pieces, so that a thread which loses its core for a while is not waited for, but of some work each.
    const int64_t share = CeilDiv(outputs, 4 * ctx.threads->threads() * kBlock), worth = Grain(kBlock * k * rows);
    const int64_t step = std::min<int64_t>(kStreamOutputs, std::max<int64_t>(1, std::min(share, kStreamOutputs / kBlock)) * kBlock);
    return ctx.threads->For(CeilDiv(outputs, step), std::max<int64_t>(1, std::min(worth * kBlock / step, share * kBlock / step)),
                            [&](int64_t begin, int64_t end, int) {
                              for (int64_t i = begin; i < end; i++) product.Stream(i * step, std::min((i + 1) * step, outputs));
                            });
  }
  const int64_t row_step = kPanelRows / tile_rows * tile_rows, row_parts = CeilDiv(rows, row_step);
  ctx.threads->For(row_parts * CeilDiv(outputs, kPanelOutputs), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / row_parts * kPanelOutputs, row = i % row_parts * row_step;
      product.Panels(row, std::min(row_step, rows - row), n, std::min(kPanelOutputs, outputs - n));
    }
  });
}

}  // namespace bamba::cpu

#pragma GCC pop_options
