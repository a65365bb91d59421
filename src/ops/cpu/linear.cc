// y = x Wᵀ + bias. The canonical order of an output element: kLanes partial sums, lane l over k = l, l + kLanes, …, each a chain of fused multiply-adds from 0
// (the last vector padded with zeros); then the lanes are added by one fixed tree, then the bias. Tiles differ in how many elements they hold in registers and
// in where the numbers lie, never in this order.
#include "ops/cpu/simd.h"
#include "ops/cpu/x86_bf16.h"
#include "ops/op_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/matmul-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// Outputs are handled in blocks of 8: as many rows of the weight are read side by side. Their sums, and those of up to kTileRows rows of x, stay in registers.
constexpr int kBlock = 8;
constexpr int kGroup = 4;  // outputs whose lanes are added together
constexpr int kTileRows = HWY_TARGET == HWY_AVX2 ? 3 : 6;
constexpr int kTileSums = kTileRows * kGroup;
constexpr int64_t kCacheLine = 64;

// Many rows: a part of x and of W is copied to panels of this size, W decoded, both in the first and second level cache. Panel rows are padded: with a power of
// two between them they would compete for the same sets of the cache.
constexpr int64_t kPanelK = 512, kPanelStride = kPanelK + 16;
constexpr int64_t kPanelRows = 48, kPanelOutputs = 32;

// One tile's operands. W is `outputs` ≤ kGroup or kBlock rows; x rows are as many as the tile is compiled for.
template <typename W>
struct Tile {
  const float* x;
  int64_t x_stride;
  const W* w;
  int64_t w_stride;
  int64_t k;
  int64_t outputs;
  const float* bias;  // [kBlock]
  float* y;
  int64_t y_stride;
  float* sums = nullptr;  // partial sums [rows, outputs, kLanes] between panels of one product
  bool first = true, last = true;
};

// Adds the lanes of each of four vectors: lane l of a block of 128 bits with lane l + 2, those two, then the blocks likewise. A result depends on its own
// vector alone.
HWY_INLINE hn::Vec<hn::Full128<float>> AddLanes(Vec a, Vec b, Vec c, Vec d) {
  const Floats f;
  const hn::Repartition<double, Floats> pairs;
  const Vec ab = hn::Add(hn::InterleaveLower(f, a, b), hn::InterleaveUpper(f, a, b));
  const Vec cd = hn::Add(hn::InterleaveLower(f, c, d), hn::InterleaveUpper(f, c, d));
  const auto ab2 = hn::BitCast(pairs, ab), cd2 = hn::BitCast(pairs, cd);
  const Vec sums = hn::Add(hn::BitCast(f, hn::InterleaveLower(pairs, ab2, cd2)), hn::BitCast(f, hn::InterleaveUpper(pairs, ab2, cd2)));
  const hn::Half<Floats> half;
  const auto halved = hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums));
#if HWY_TARGET == HWY_AVX2
  return halved;
#else
  const hn::Half<decltype(half)> quarter;
  return hn::Add(hn::LowerHalf(quarter, halved), hn::UpperHalf(quarter, halved));
#endif
}

template <int kRows, int kOutputs>
HWY_INLINE void Finish(const Vec (&sums)[kRows][kOutputs], const float* bias, float* y, int64_t y_stride, int64_t outputs) {
  const hn::Full128<float> four;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int j = 0; j < kOutputs; j += kGroup) {
      const auto out = hn::Add(AddLanes(sums[r][j], sums[r][j + 1], sums[r][j + 2], sums[r][j + 3]), hn::LoadU(four, bias + j));
      if (outputs >= j + kGroup) {
        hn::StoreU(out, four, y + r * y_stride + j);
      } else if (outputs > j) {
        HWY_ALIGN float part[kGroup];
        hn::Store(out, four, part);
        std::memcpy(y + r * y_stride + j, part, static_cast<size_t>(outputs - j) * sizeof(float));
      }
    }
  }
}

// kRows rows of x times kOutputs rows of W. Past the last output its row is read again, for nothing, instead of having a kernel for each number.
// kFromMemory: W is not in a cache yet, and the rows after it come next.
template <int kRows, int kOutputs, bool kFromMemory, typename W>
HWY_INLINE void MultiplyTile(const Tile<W>& t) {
  const Floats f;
  Vec sums[kRows][kOutputs];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
    for (int j = 0; j < kOutputs; j++) sums[r][j] = t.first ? hn::Zero(f) : hn::Load(f, t.sums + (r * kOutputs + j) * kLanes);

  const float* x[kRows];
  const W* w[kOutputs];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++) x[r] = t.x + r * t.x_stride;
#pragma GCC unroll 8
  for (int j = 0; j < kOutputs; j++) w[j] = t.w + std::min<int64_t>(j, t.outputs - 1) * t.w_stride;

  const auto step = [&](int64_t k, auto prefetch, const auto& load_x, const auto& load_w) HWY_ATTR {
    Vec xs[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) xs[r] = load_x(x[r]);
#pragma GCC unroll 8
    for (int j = 0; j < kOutputs; j++) {
      // A block ahead: far enough for the second level cache, and across the ends of rows.
      if (prefetch()) __builtin_prefetch(w[j] + k + kBlock * t.w_stride, 0, 2);
      const Vec ws = load_w(w[j]);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) sums[r][j] = hn::MulAdd(xs[r], ws, sums[r][j]);
    }
  };
  const auto full_step = [&](int64_t k, auto prefetch) HWY_ATTR {
    step(
        k, prefetch, [&](const float* p) HWY_ATTR { return LoadWeights(p + k); }, [&](const W* p) HWY_ATTR { return LoadWeights(p + k); });
  };
  constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(W));
  int64_t k = 0;
  for (; k + kLine <= t.k; k += kLine) {
    full_step(k, std::bool_constant<kFromMemory>());
#pragma GCC unroll 4
    for (int64_t i = kLanes; i < kLine; i += kLanes) full_step(k + i, std::false_type());
  }
  for (; k + kLanes <= t.k; k += kLanes) full_step(k, std::false_type());
  if (k < t.k) {
    const int64_t rest = t.k - k;
    const auto load = [&](const auto* p) HWY_ATTR { return LoadWeightsPartly(p + k, rest); };
    step(k, std::false_type(), load, load);
  }

  if (t.last) return Finish(sums, t.bias, t.y, t.y_stride, t.outputs);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
    for (int j = 0; j < kOutputs; j++) hn::Store(sums[r][j], f, t.sums + (r * kOutputs + j) * kLanes);
}

// The bias of outputs [n, n + kBlock), 0 where there is none.
HWY_INLINE void LoadBias(const Tensor& bias, int64_t n, int64_t outputs, float* to) {
  std::fill(to, to + kBlock, 0.0f);
  if (bias)
    Convert(static_cast<const char*>(bias.data()) + static_cast<size_t>(n) * SizeOf(bias.dtype()), bias.dtype(), to, Dtype::kF32, static_cast<size_t>(outputs));
}

// Few rows: the weight is read once, from memory, by blocks of outputs, and decoded in registers for each tile of rows.
template <typename W>
void StreamWeights(const Tensor& x, const LinearWeight& w, const Tensor& y, int64_t begin, int64_t end) {
  const int64_t rows = x.rows(), tile_rows = EvenPiece(rows, kTileRows), w_stride = w.weight.stride(0);
  for (int64_t n = begin; n < end; n += kBlock) {
    const int64_t outputs = std::min<int64_t>(kBlock, end - n);
    float bias[kBlock];
    LoadBias(w.bias, n, outputs, bias);
    for (int64_t r = 0; r < rows; r += tile_rows) {
      WithRows<kTileRows>(std::min(tile_rows, rows - r), [&](auto count) HWY_ATTR {
        constexpr int kRows = decltype(count)::value, kOutputs = kRows * kBlock <= kTileSums ? kBlock : kGroup;
        for (int64_t j = 0; j < outputs; j += kOutputs) {
          MultiplyTile<kRows, kOutputs, true>(Tile<W>{x.Row<float>(r), x.stride(0), w.weight.Row<W>(n + j), w_stride, x.cols(),
                                                      std::min<int64_t>(kOutputs, outputs - j), bias + j, y.Row<float>(r) + n + j, y.stride(0)});
        }
      });
    }
  }
}

// Copies rows × k numbers, decoded, to a panel; the last vector is padded with zeros.
template <typename W>
HWY_INLINE void CopyPanel(const W* from, int64_t stride, int64_t rows, int64_t k, float* panel) {
  const Floats f;
  for (int64_t r = 0; r < rows; r++, from += stride, panel += kPanelStride) {
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) hn::Store(LoadWeights(from + i), f, panel + i);
    if (i < k) hn::Store(LoadWeightsPartly(from + i, k - i), f, panel + i);
  }
}

// Many rows: rows [row, row + rows) × outputs [n, n + outputs) of y, at most kPanelRows × kPanelOutputs. Between panels the sums of all lanes are kept.
template <typename W>
void MultiplyPanels(const Tensor& x, const LinearWeight& w, const Tensor& y, int64_t row, int64_t rows, int64_t n, int64_t outputs) {
  HWY_ALIGN float x_panel[kTileRows * kPanelStride], w_panel[kPanelOutputs * kPanelStride], sums[kPanelRows * kPanelOutputs * kLanes];
  float bias[kPanelOutputs];
  for (int64_t j = 0; j < kPanelOutputs; j += kBlock) LoadBias(w.bias, n + j, std::clamp<int64_t>(outputs - j, 0, kBlock), bias + j);
  const int64_t tile_rows = EvenPiece(rows, kTileRows), all = x.cols();
  for (int64_t k = 0; k < all; k += kPanelK) {
    const int64_t part = std::min(kPanelK, all - k), padded = (part + kLanes - 1) / kLanes * kLanes;
    CopyPanel(w.weight.Row<W>(n) + k, w.weight.stride(0), outputs, part, w_panel);
    for (int64_t r = 0; r < rows; r += tile_rows) {
      WithRows<kTileRows>(std::min(tile_rows, rows - r), [&](auto count) HWY_ATTR {
        constexpr int kRows = decltype(count)::value;
        CopyPanel(x.Row<float>(row + r) + k, x.stride(0), kRows, part, x_panel);
        for (int64_t j = 0; j < outputs; j += kGroup) {
          MultiplyTile<kRows, kGroup, false>(Tile<float>{x_panel, kPanelStride, w_panel + j * kPanelStride, kPanelStride, padded,
                                                         std::min<int64_t>(kGroup, outputs - j), bias + j, y.Row<float>(row + r) + n + j, y.stride(0),
                                                         sums + (r * kPanelOutputs + j * kRows) * kLanes, k == 0, k + part == all});
        }
      });
    }
  }
}

// From this number of rows on, decoding and copying once pays.
constexpr int64_t kManyRows = 16;

template <typename W>
void LinearAs(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), outputs = y.cols(), k = x.cols();
  if (rows == 0) return;
  if (rows < kManyRows || k == 0) {
    // Pieces of several blocks, so that a thread which loses its core for a while is not waited for, but of some work each.
    constexpr int64_t kLeastWork = 1 << 15;
    const int64_t blocks = CeilDiv(outputs, kBlock);
    const int64_t grain = std::max(blocks / (ctx.threads->threads() * 8), kLeastWork / (rows * std::max<int64_t>(k, 1) * kBlock) + 1);
    return ctx.threads->For(blocks, grain,
                            [&](int64_t begin, int64_t end, int) { StreamWeights<W>(x, w, y, begin * kBlock, std::min(end * kBlock, outputs)); });
  }
  const int64_t row_step = EvenPiece(rows, kPanelRows), row_parts = CeilDiv(rows, row_step);
  const int64_t output_parts = CeilDiv(outputs, kPanelOutputs);
  ctx.threads->For(row_parts * output_parts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / row_parts * kPanelOutputs, row = i % row_parts * row_step;
      MultiplyPanels<W>(x, w, y, row, std::min(row_step, rows - row), n, std::min(kPanelOutputs, outputs - n));
    }
  });
}

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  WithWeightType(w.weight.dtype(), [&]<typename W>(W) { LinearAs<W>(ctx, x, w, y); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(Linear);
void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  if (!ctx.precise && w.weight.dtype() == Dtype::kBf16) {
    if (CurrentSimd() == SimdLevel::kAmx) return LinearAmx(ctx, x, w, y);
    if (CurrentSimd() == SimdLevel::kAvx512Bf16) return LinearAvx512Bf16(ctx, x, w, y);
  }
  HWY_DYNAMIC_DISPATCH(Linear)(ctx, x, w, y);
}

}  // namespace bamba::cpu
#endif
