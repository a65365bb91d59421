// y = x Wᵀ + bias. The canonical order of an output element: the inputs come in blocks of kBlockK; a block has kSums = 8 partial sums, sum l over k = l, l + 8,
// …, each a chain of fused multiply-adds from 0, and one tree adds them: ((0 + 2) + (1 + 3)) + ((4 + 6) + (5 + 7)); the blocks are added in order, then the
// bias. With few rows of x a vector holds the sums of one or two outputs, with many rows one sum of many outputs: the order is the same, and so are the bits.
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

constexpr int64_t kBlockK = 512, kSums = 8;

// Tiles of rows × vectors whose sums stay in registers. Few rows: four vectors of kLanes / kSums outputs each.
constexpr int kFewRows = HWY_TARGET == HWY_AVX2 ? 3 : 6, kFewVecs = 4;
constexpr int64_t kFewOutputs = kFewVecs * kLanes / kSums;
// Many: so many of an element's sums at a time, so many steps of a sum at a time.
template <int kRowCount, int kVecCount, int kSumCount, int kStepCount>
struct Tile {
  static constexpr int kRows = kRowCount, kVecs = kVecCount, kSumsAtOnce = kSumCount, kSteps = kStepCount;
  static constexpr int64_t kOutputs = kVecs * kLanes;
};
using LargeTile = std::conditional_t<HWY_TARGET == HWY_AVX2, Tile<4, 3, 1, 4>, Tile<6, 4, 1, 1>>;
// Two sums at a time halve what waits in memory for its neighbour in the tree. That is 5 to 10 % at AVX2 (Zen 3) where a panel stays in the first level cache,
// as with so few inputs; with more of them larger tiles read less from behind it.
using ShortTile = Tile<3, 2, 2, 1>;
[[maybe_unused]] constexpr int64_t kShortInputs = 256;

// kCount rows of a weight, side by side. Past the last of `present` rows it comes again, for nothing.
template <typename W, int64_t kCount>
struct WeightRows {
  const W* at[kCount];
  HWY_INLINE WeightRows(const W* first, int64_t stride, int64_t present) {
    for (int64_t j = 0; j < kCount; j++) at[j] = first + std::min(j, present - 1) * stride;
  }
};

// Few rows are taken in so many tiles, as even as can be. With bf16 at AVX2 they are pairs, where one is left over once three: of pairs the sums leave room
// for the pattern of ShuffleWeights, and take 15 % less time a row than threes (Zen 4).
template <typename W>
int64_t FewTiles(int64_t rows) {
  if (HWY_TARGET == HWY_AVX2 && std::is_same_v<W, Bf16>) return std::max(rows / 2, int64_t{1});
  return CeilDiv(rows, int64_t{kFewRows});
}

// Eight inputs of row j and, where a vector has room for it, of row j + kFewVecs. kRows: of x, which they are for.
template <int kRows, typename W>
HWY_INLINE Vec LoadEights(const WeightRows<W, kFewOutputs>& w, int64_t j, int64_t k) {
#if HWY_TARGET == HWY_AVX2
  if constexpr (std::is_same_v<W, Bf16> && kRows <= 2) return ShuffleWeights(w.at[j] + k);
  return LoadWeights(w.at[j] + k);
#else
  return LoadTwoHalves(w.at[j] + k, w.at[j + kFewVecs] + k);
#endif
}

HWY_INLINE Vec RepeatEight(const float* x) {
#if HWY_TARGET == HWY_AVX2
  return hn::LoadU(Floats(), x);
#else
  return Vec{_mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(_mm256_loadu_ps(x))))};
#endif
}

// Adds the sums of kFewVecs vectors: the outputs of all.
using FewOutputs = hn::CappedTag<float, kFewOutputs>;
HWY_INLINE hn::Vec<FewOutputs> AddSums(Vec a, Vec b, Vec c, Vec d) {
  const Vec fours = SumsOfBlocks(a, b, c, d);
#if HWY_TARGET == HWY_AVX2
  return hn::Add(hn::LowerHalf(fours), hn::UpperHalf(FewOutputs(), fours));
#else
  const Vec eights = hn::Add(fours, Vec{_mm512_shuffle_f32x4(fours.raw, fours.raw, 0xb1)});
  return hn::LowerHalf(Vec{_mm512_shuffle_f32x4(eights.raw, eights.raw, 0x08)});
#endif
}

// Takes a block's sum into y, of which it is the first or the last one.
struct Place {
  bool first, last;

  template <typename D>
  HWY_INLINE hn::Vec<D> Total(D d, hn::Vec<D> sum, const float* y, const float* bias) const {
    if (!first) sum = hn::Add(hn::LoadU(d, y), sum);
    return last ? hn::Add(sum, hn::LoadU(d, bias)) : sum;
  }
  template <typename D>
  HWY_INLINE void Store(D d, hn::Vec<D> sum, const float* bias, float* y, int64_t outputs) const {
    if (outputs >= static_cast<int64_t>(hn::MaxLanes(d))) return hn::StoreU(Total(d, sum, y, bias), d, y);
    HWY_ALIGN float part[kLanes] = {};
    const size_t bytes = static_cast<size_t>(outputs) * sizeof(float);
    std::memcpy(part, y, bytes);
    hn::Store(Total(d, sum, part, bias), d, part);
    std::memcpy(y, part, bytes);
  }
};

// The bias of outputs [n, n + outputs), 0 where there is none, and up to `room`.
HWY_INLINE void LoadBias(const Tensor& bias, int64_t n, int64_t outputs, float* to, int64_t room) {
  std::fill(to, to + room, 0.0f);
  if (bias)
    Convert(static_cast<const char*>(bias.data()) + static_cast<size_t>(n) * SizeOf(bias.dtype()), bias.dtype(), to, Dtype::kF32, static_cast<size_t>(outputs));
}

// Rows of x with their part of y.
struct Rows {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
};

// kRows rows of x times up to kFewOutputs outputs. The tiles of rows come one after the other, this one as number `turn` of `turns`: each asks for its share of
// the weights ahead, so that memory is read all the time and not while the first one is computed alone (four rows with bf16 at AVX2: 25 % faster).
// Not inlined: beside each other the tiles' registers are chosen badly.
template <int kRows, typename W>
HWY_NOINLINE void StreamTile(const Rows& rows, const W* first, int64_t w_stride, int64_t all, const float* bias, int64_t outputs, int64_t turn, int64_t turns) {
  const WeightRows<W, kFewOutputs> w(first, w_stride, outputs);
  // The weights of two tiles of outputs ahead, far enough for the second level cache, in the order in which they lie: so the processor's own prefetchers follow
  // (one row with bf16 at AVX2: 5 % faster than row beside row).
  const int64_t ask_from = turn * kFewOutputs / turns, lines = (turn + 1) * kFewOutputs / turns - ask_from;
  const W* ask = first + (2 * kFewOutputs + ask_from) * w_stride;
  int64_t k = 0;
  do {  // once also where there are no inputs
    const int64_t end = std::min(k + kBlockK, all);
    const Place place = {k == 0, end == all};
    Vec sums[kRows][kFewVecs];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int j = 0; j < kFewVecs; j++) sums[r][j] = hn::Zero(Floats());

    const auto step = [&](const float* x, int64_t x_stride, const auto& ws, int64_t at) HWY_ATTR {
      Vec xs[kRows];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) xs[r] = RepeatEight(x + r * x_stride + at);
#pragma GCC unroll 4
      for (int j = 0; j < kFewVecs; j++) {
        const Vec eights = LoadEights<kRows>(ws, j, at);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; r++) sums[r][j] = hn::MulAdd(xs[r], eights, sums[r][j]);
      }
    };
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W));
    while (k + kLine <= end) {
      for (int64_t j = 0; j < lines; j++, ask += kLine) __builtin_prefetch(ask, 0, 2);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLine; i += kSums, k += kSums) step(rows.x, rows.x_stride, w, k);
    }
    for (; k + kSums <= end; k += kSums) step(rows.x, rows.x_stride, w, k);
    if (k < end) {
      HWY_ALIGN float x[kRows][kSums] = {};
      HWY_ALIGN W ws[kFewOutputs][kSums] = {};
      for (int r = 0; r < kRows; r++) std::memcpy(x[r], rows.x + r * rows.x_stride + k, static_cast<size_t>(end - k) * sizeof(float));
      for (int64_t j = 0; j < kFewOutputs; j++) std::memcpy(static_cast<void*>(ws[j]), w.at[j] + k, static_cast<size_t>(end - k) * sizeof(W));
      step(x[0], kSums, WeightRows<W, kFewOutputs>(ws[0], kSums, kFewOutputs), 0);
      k = end;
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
      place.Store(FewOutputs(), AddSums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]), bias, rows.y + r * rows.y_stride, outputs);
  } while (k < all);
}

// One row of x times up to kFewOutputs outputs in f32, one after the other from its first weight to its last: so memory is read in one stream, which the
// processor's prefetchers follow. Rows of a weight side by side, as StreamTile takes them, got 60 to 85 % of that on a Zen 4. Not for 16 bits, where decoding
// makes the one chain of an output too long.
using Eights = hn::CappedTag<float, kSums>;
void StreamOneByOne(const float* x, const float* first, int64_t w_stride, int64_t all, const float* bias, int64_t outputs, float* y) {
  constexpr int64_t kBlocks = 8;  // at a time
  int64_t from = 0;
  do {  // once also where there are no inputs
    const int64_t end = std::min(from + kBlocks * kBlockK, all), blocks = std::max(CeilDiv(end - from, kBlockK), int64_t{1});
    HWY_ALIGN float sums[kBlocks][kFewOutputs][kSums];
    if (outputs < kFewOutputs) std::memset(sums, 0, sizeof(sums));  // the tree adds up the others too
    for (int64_t j = 0; j < outputs; j++) {
      const float* const w = first + j * w_stride;
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t past = std::min(from + (block + 1) * kBlockK, end);
        hn::Vec<Eights> sum = hn::Zero(Eights());
        int64_t k = from + block * kBlockK;
        const auto step = [&] HWY_ATTR { sum = hn::MulAdd(hn::LoadU(Eights(), x + k), hn::LoadU(Eights(), w + k), sum), k += kSums; };
        while (k + 4 * kSums <= past) step(), step(), step(), step();
        while (k + kSums <= past) step();
        if (k < past) {
          const auto some = hn::FirstN(Eights(), static_cast<size_t>(past - k));
          sum = hn::MulAdd(hn::MaskedLoad(some, Eights(), x + k), hn::MaskedLoad(some, Eights(), w + k), sum);
        }
        hn::Store(sum, Eights(), sums[block][j]);
      }
    }
    for (int64_t block = 0; block < blocks; block++) {
      const auto sums_of = [&](int64_t j) HWY_ATTR {
#if HWY_TARGET == HWY_AVX2
        return hn::Load(Floats(), sums[block][j]);
#else
        return hn::Combine(Floats(), hn::Load(Eights(), sums[block][j + kFewVecs]), hn::Load(Eights(), sums[block][j]));
#endif
      };
      const int64_t k = from + block * kBlockK;
      const Place place = {k == 0, k + kBlockK >= all};
      place.Store(FewOutputs(), AddSums(sums_of(0), sums_of(1), sums_of(2), sums_of(3)), bias, y, outputs);
    }
    from = end;
  } while (from < all);
}

// Few rows: outputs [begin, end), the weight read once, from memory, and decoded in registers for each tile of rows.
template <typename W>
void StreamWeights(const Tensor& x, const LinearWeight& w, const Tensor& y, int64_t begin, int64_t end) {
  const int64_t rows = x.rows(), tiles = FewTiles<W>(rows);
  for (int64_t n = begin; n < end; n += kFewOutputs) {
    const int64_t outputs = std::min(kFewOutputs, end - n);
    HWY_ALIGN float bias[kFewOutputs];
    LoadBias(w.bias, n, outputs, bias, kFewOutputs);
    if constexpr (std::is_same_v<W, float>) {
      if (rows == 1) {
        StreamOneByOne(x.Row<float>(0), w.weight.Row<W>(n), w.weight.stride(0), x.cols(), bias, outputs, y.Row<float>(0) + n);
        continue;
      }
    }
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t r = t * rows / tiles;
      const Rows tile = {x.Row<float>(r), x.stride(0), y.Row<float>(r) + n, y.stride(0)};
      WithRows<kFewRows>((t + 1) * rows / tiles - r, [&](auto count) HWY_ATTR {
        StreamTile<decltype(count)::value>(tile, w.weight.Row<W>(n), w.weight.stride(0), x.cols(), bias, outputs, t, tiles);
      });
    }
  }
}

// A block of W [outputs, k], decoded and turned: element (n, k) at [k % kSums][k / kSums][n], outputs padded to whole vectors with any numbers, k with zeros.
// The parts of the sums lie a little further apart than they are long: with a power of two between them they would compete for the same sets of the caches.
struct Panel {
  static constexpr int64_t Size(int64_t steps, int64_t vecs) { return kSums * (steps * vecs + 1) * kLanes; }
  float* data;
  int64_t steps, vecs;

  HWY_INLINE float* At(int64_t sum, int64_t step) const { return data + (sum * (steps * vecs + 1) + step * vecs) * kLanes; }

  template <typename W>
  void Fill(const W* w, int64_t stride, int64_t outputs, int64_t k) const {
    for (int64_t v = 0; v < vecs; v++) {
      const WeightRows<W, kLanes> rows(w + v * kLanes * stride, stride, outputs - v * kLanes);
      int64_t i = 0;
      for (; i + kLanes <= k; i += kLanes) Turn(rows, i, i, v);
      if (i == k) continue;
      HWY_ALIGN W rest[kLanes][kLanes] = {};
      for (int64_t j = 0; j < kLanes; j++) std::memcpy(static_cast<void*>(rest[j]), rows.at[j] + i, static_cast<size_t>(k - i) * sizeof(W));
      Turn(WeightRows<W, kLanes>(rest[0], kLanes, kLanes), 0, i, v);
    }
  }

 private:
  // Inputs [k, k + kLanes) of the rows, which are inputs [to, …) of the block. By blocks of four inputs: of a row they are a block of 128 bits of a vector,
  // which has rows j, j + 4, …; then each 4 × 4 is turned.
  template <typename W>
  HWY_INLINE void Turn(const WeightRows<W, kLanes>& rows, int64_t k, int64_t to, int64_t v) const {
    constexpr int kFours = kLanes / 4;
    const Floats f;
    const hn::Repartition<double, Floats> pairs;
    Vec fours[4][kFours];
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; j++) {
#if HWY_TARGET == HWY_AVX2
      const Vec a = LoadWeights(rows.at[j] + k), b = LoadWeights(rows.at[j + 4] + k);
      fours[j][0] = hn::ConcatLowerLower(f, b, a), fours[j][1] = hn::ConcatUpperUpper(f, b, a);
#else
      const Vec a = LoadWeights(rows.at[j] + k), b = LoadWeights(rows.at[j + 4] + k);
      const Vec c = LoadWeights(rows.at[j + 8] + k), d = LoadWeights(rows.at[j + 12] + k);
      const Vec low_ab = hn::ConcatLowerLower(f, b, a), high_ab = hn::ConcatUpperUpper(f, b, a);
      const Vec low_cd = hn::ConcatLowerLower(f, d, c), high_cd = hn::ConcatUpperUpper(f, d, c);
      fours[j][0] = Vec{_mm512_shuffle_f32x4(low_ab.raw, low_cd.raw, 0x88)}, fours[j][1] = Vec{_mm512_shuffle_f32x4(low_ab.raw, low_cd.raw, 0xdd)};
      fours[j][2] = Vec{_mm512_shuffle_f32x4(high_ab.raw, high_cd.raw, 0x88)}, fours[j][3] = Vec{_mm512_shuffle_f32x4(high_ab.raw, high_cd.raw, 0xdd)};
#endif
    }
#pragma GCC unroll 4
    for (int64_t q = 0; q < kFours; q++) {
      const Vec a = fours[0][q], b = fours[1][q], c = fours[2][q], d = fours[3][q];
      const auto low_ab = hn::BitCast(pairs, hn::InterleaveLower(f, a, b)), high_ab = hn::BitCast(pairs, hn::InterleaveUpper(f, a, b));
      const auto low_cd = hn::BitCast(pairs, hn::InterleaveLower(f, c, d)), high_cd = hn::BitCast(pairs, hn::InterleaveUpper(f, c, d));
      const auto store = [&](int64_t i, auto column) HWY_ATTR {
        const int64_t input = to + 4 * q + i;
        if (input / kSums < steps) hn::Store(hn::BitCast(f, column), f, At(input % kSums, input / kSums) + v * kLanes);
      };
      store(0, hn::InterleaveLower(pairs, low_ab, low_cd)), store(1, hn::InterleaveUpper(pairs, low_ab, low_cd));
      store(2, hn::InterleaveLower(pairs, high_ab, high_cd)), store(3, hn::InterleaveUpper(pairs, high_ab, high_cd));
    }
  }
};

// kRows ≤ T::kRows rows of x, k of their numbers, times the outputs of a panel of kVecs ≤ T::kVecs vectors.
template <typename T, int kRows, int kVecs>
void MultiplyPanel(const Rows& rows, const Panel& panel, int64_t k, Place place, const float* bias, int64_t outputs) {
  // One after the other so that adding neighbours, then neighbouring pairs, then fours is the tree.
  constexpr int64_t kOrder[kSums] = {0, 2, 1, 3, 4, 6, 5, 7};
  constexpr int kTogether = T::kSumsAtOnce, kPasses = kSums / kTogether;
  static_assert(kTogether <= 2);
  const Floats f;
  HWY_ALIGN float kept[3][kRows][kVecs][kLanes];  // sums of 1, 2 and 4 passes that wait for their neighbour
  Vec sums[kTogether][kRows][kVecs];
  for (int i = 0; i < kPasses; i++) {
    const int64_t* const of = kOrder + i * kTogether;
    const float *w[kTogether], *x = rows.x + of[0];
#pragma GCC unroll 2
    for (int l = 0; l < kTogether; l++) {
      w[l] = panel.At(of[l], 0);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) sums[l][r][v] = hn::Zero(f);
    }
    const auto add = [&](int l) HWY_ATTR {
      Vec ws[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++) ws[v] = hn::Load(f, w[l] + v * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) {
        const Vec xs = hn::Set(f, x[r * rows.x_stride + 2 * l]);  // the second of two sums is two inputs further on
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) sums[l][r][v] = hn::MulAdd(xs, ws[v], sums[l][r][v]);
      }
      w[l] += kVecs * kLanes;
    };
    const auto step = [&] HWY_ATTR {
      add(0);
      if constexpr (kTogether == 2) add(1);
      x += kSums;
    };
    const auto inputs_of = [&](int64_t sum) { return (k - sum + kSums - 1) / kSums; };
    int64_t steps = inputs_of(of[kTogether - 1]);  // of the last sum, which may have one less
    const int64_t rest = inputs_of(of[0]) - steps;
    if constexpr (T::kSteps == 4)
      for (; steps >= 4; steps -= 4) step(), step(), step(), step();
    for (; steps > 0; steps--) step();
    if (kTogether == 2 && rest > 0) add(0);

    auto& total = sums[0];
    if constexpr (kTogether == 2)
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) total[r][v] = hn::Add(total[r][v], sums[1][r][v]);
    int level = 0;
    for (; i >> level & 1; level++)
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) total[r][v] = hn::Add(hn::Load(f, kept[level][r][v]), total[r][v]);
    if (i + 1 == kPasses) break;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++) hn::Store(total[r][v], f, kept[level][r][v]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v++)
      place.Store(f, sums[0][r][v], bias + v * kLanes, rows.y + r * rows.y_stride + v * kLanes, v + 1 < kVecs ? kLanes : outputs - v * kLanes);
}

// Panels that one piece of work takes at most: the second level cache has room for them beside x.
constexpr int64_t kMostPanels = HWY_TARGET == HWY_AVX2 ? 4 : 2;

// Many rows: rows [row, row + rows) × outputs [n, n + outputs) of y. Some rows go through all panels before the next ones do, so that x comes from behind the
// second level cache less often; a panel and a tile of x are in the first.
template <typename T, typename W>
void MultiplyPanels(const Tensor& x, const LinearWeight& w, const Tensor& y, int64_t row, int64_t rows, int64_t n, int64_t outputs) {
  constexpr int64_t kRowsAtOnce = 48, kPanel = T::kOutputs;
  HWY_ALIGN float data[kMostPanels * Panel::Size(kBlockK / kSums, T::kVecs)], bias[kMostPanels * kPanel];
  LoadBias(w.bias, n, outputs, bias, kMostPanels * kPanel);
  const int64_t tile_rows = EvenPiece(rows, T::kRows), rows_at_once = std::max(kRowsAtOnce / tile_rows, int64_t{1}) * tile_rows, all = x.cols();
  for (int64_t k = 0; k < all; k += kBlockK) {
    const int64_t part = std::min(kBlockK, all - k), steps = CeilDiv(part, kSums);
    const auto outputs_from = [&](int64_t o) { return std::min(kPanel, outputs - o); };
    const auto panel_at = [&](int64_t o) { return Panel{data + o / kPanel * Panel::Size(steps, T::kVecs), steps, CeilDiv(outputs_from(o), kLanes)}; };
    for (int64_t o = 0; o < outputs; o += kPanel) panel_at(o).Fill(w.weight.Row<W>(n + o) + k, w.weight.stride(0), outputs_from(o), part);
    for (int64_t first = row; first < row + rows; first += rows_at_once) {
      const int64_t end = std::min(first + rows_at_once, row + rows);
      for (int64_t o = 0; o < outputs; o += kPanel) {
        const Panel panel = panel_at(o);
        WithRows<T::kVecs>(panel.vecs, [&](auto vecs) HWY_ATTR {
          for (int64_t r = first; r < end; r += tile_rows) {
            const Rows tile = {x.Row<float>(r) + k, x.stride(0), y.Row<float>(r) + n + o, y.stride(0)};
            WithRows<T::kRows>(std::min(tile_rows, end - r), [&](auto count) HWY_ATTR {
              MultiplyPanel<T, decltype(count)::value, decltype(vecs)::value>(tile, panel, part, {k == 0, k + part == all}, bias + o, outputs_from(o));
            });
          }
        });
      }
    }
  }
}

// From this number of rows on, decoding and turning the weight once pays.
constexpr int64_t kManyRows = HWY_TARGET == HWY_AVX2 ? 24 : 16;

// Few rows times one matrix or several, whose outputs lie side by side in y: one loop, so that the threads wait for each other once.
template <typename W>
void LinearsFew(Context& ctx, const Tensor& x, std::span<const LinearWeight> matrices, const Tensor& y) {
  const int64_t rows = x.rows(), k = x.cols();
  int64_t blocks = 0;
  for (const LinearWeight& w : matrices) blocks += CeilDiv(w.weight.rows(), kFewOutputs);
  // Pieces of several blocks, so that a thread which loses its core for a while is not waited for, but of some work each; as many for each thread.
  constexpr int64_t kLeastWork = 1 << 15, kMostPieces = 8;
  const int64_t threads = ctx.threads->threads(), pieces = std::clamp(blocks * kFewOutputs * rows * k / (kLeastWork * threads), int64_t{1}, kMostPieces);
  const int64_t grain = CeilDiv(blocks, pieces * threads);
  ctx.threads->For(blocks, grain, [&](int64_t begin, int64_t end, int) {
    int64_t first = 0, column = 0;  // of a matrix: block and output
    for (const LinearWeight& w : matrices) {
      const int64_t outputs = w.weight.rows(), count = CeilDiv(outputs, kFewOutputs), from = std::max(begin, first), to = std::min(end, first + count);
      if (from < to) StreamWeights<W>(x, w, y.Columns({column, outputs}), (from - first) * kFewOutputs, std::min((to - first) * kFewOutputs, outputs));
      first += count, column += outputs;
    }
  });
}

template <typename T, typename W>
void LinearMany(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), outputs = y.cols(), threads = ctx.threads->threads();
  const int64_t panels = CeilDiv(outputs, T::kOutputs);
  // Pieces of several panels at first, of one in the end, so that the threads end together.
  const auto panels_from = [&](int64_t panel) { return std::min(kMostPanels, CeilDiv(panels - panel, 2 * threads)); };
  const int64_t large = CeilDiv(std::max<int64_t>(0, panels - 2 * threads * (kMostPanels - 1)), kMostPanels);  // pieces of so many
  const auto first_panel = [&](int64_t piece) {
    int64_t panel = std::min(piece, large) * kMostPanels;
    for (int64_t i = large; i < piece; i++) panel += panels_from(panel);
    return panel;
  };
  int64_t pieces = large;
  for (int64_t panel = large * kMostPanels; panel < panels; panel += panels_from(panel)) pieces++;
  // Every part of the rows turns the weight anew: no more parts than the threads need to end together.
  constexpr int64_t kLeastRows = 48;
  const int64_t wanted = CeilDiv(2 * threads, pieces);
  const int64_t row_step = CeilDiv(EvenPiece(rows, std::max(kLeastRows, CeilDiv(rows, wanted))), T::kRows) * T::kRows, row_parts = CeilDiv(rows, row_step);
  ctx.threads->For(row_parts * pieces, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t panel = first_panel(i / row_parts), row = i % row_parts * row_step, n = panel * T::kOutputs;
      MultiplyPanels<T, W>(x, w, y, row, std::min(row_step, rows - row), n, std::min(panels_from(panel) * T::kOutputs, outputs - n));
    }
  });
}

template <typename W>
void LinearAs(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  const int64_t rows = x.rows(), k = x.cols();
  if (rows == 0) return;
  if (rows < kManyRows || k == 0) return LinearsFew<W>(ctx, x, {&w, 1}, y);
  if constexpr (HWY_TARGET == HWY_AVX2)
    if (k <= kShortInputs) return LinearMany<ShortTile, W>(ctx, x, w, y);
  LinearMany<LargeTile, W>(ctx, x, w, y);
}

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  WithWeightType(w.weight.dtype(), [&]<typename W>(W) { LinearAs<W>(ctx, x, w, y); });
}

void LinearsOfFewRows(Context& ctx, const Tensor& x, std::span<const LinearWeight> matrices, const Tensor& y) {
  WithWeightType(matrices[0].weight.dtype(), [&]<typename W>(W) { LinearsFew<W>(ctx, x, matrices, y); });
}

bool IsFewRows(const Tensor& x) { return x.rows() > 0 && (x.rows() < kManyRows || x.cols() == 0); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(Linear);
HWY_EXPORT(LinearsOfFewRows);
HWY_EXPORT(IsFewRows);

namespace {

bool RoundsToBf16(const Context& ctx, const LinearWeight& w) {
  return !ctx.precise && w.weight.dtype() == Dtype::kBf16 && CurrentSimd() >= SimdLevel::kAvx512Bf16;
}

}  // namespace

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  if (RoundsToBf16(ctx, w)) return CurrentSimd() == SimdLevel::kAmx ? LinearsAmx(ctx, x, {&w, 1}, y) : LinearAvx512Bf16(ctx, x, w, y);
  HWY_DYNAMIC_DISPATCH(Linear)(ctx, x, w, y);
}

void Linears(Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y) {
  const Dtype dtype = w.begin()->weight.dtype();
  const bool alike = std::all_of(w.begin(), w.end(), [&](const LinearWeight& one) { return one.weight.dtype() == dtype; });
  if (alike && RoundsToBf16(ctx, *w.begin()) && CurrentSimd() == SimdLevel::kAmx) return LinearsAmx(ctx, x, {w.begin(), w.size()}, y);
  if (alike && !RoundsToBf16(ctx, *w.begin()) && HWY_DYNAMIC_DISPATCH(IsFewRows)(x))
    return HWY_DYNAMIC_DISPATCH(LinearsOfFewRows)(ctx, x, {w.begin(), w.size()}, y);
  int64_t out = 0;
  for (const LinearWeight& one : w) {
    Linear(ctx, x, one, y.Columns({out, one.weight.rows()}));
    out += one.weight.rows();
  }
}

}  // namespace bamba::cpu
#endif
