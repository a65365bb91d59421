// Both gradients of Linear are one product, C[i, :] += Σ_r A(i, r) B[r, :]: dx = dy W with r over outputs, dW = dyᵀ x with r over rows. The canonical order of
// an element is one chain of fused multiply-adds over r, upwards, from what C held (0 where it is written): no blocking, thread or SIMD level can change it.
#include "ops/op_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_backward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/matmul-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

// A tile of C in registers: kTileRows × kTileCols. Blocks: a panel of B, kDepth × kTileCols and decoded, serves kBlockRows rows of C.
constexpr int kTileRows = 6;
constexpr int kTileVecs = HWY_TARGET == HWY_AVX2 ? 2 : 4;
constexpr int64_t kTileCols = kTileVecs * kLanes;
constexpr int64_t kDepth = 256, kBlockRows = 96;

template <typename W>
struct Product {
  const float* a;
  int64_t a_row, a_depth;  // A(i, r) = a[i · a_row + r · a_depth]
  const W* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, cols, depth;
  bool add;
};

// c [kRows, kTileCols] += Σ_r A(i, r) b[r, :]
template <int kRows>
HWY_INLINE void AddTile(const float* a, int64_t a_row, int64_t a_depth, const float* HWY_RESTRICT b, int64_t depth, float* HWY_RESTRICT c, int64_t c_stride) {
  const Floats f;
  Vec sums[kRows][kTileVecs];
  const float* ai[kRows];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; i++) {
    ai[i] = a + i * a_row;
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; v++) sums[i][v] = hn::LoadU(f, c + i * c_stride + v * kLanes);
  }
  for (int64_t r = 0; r < depth; r++, b += kTileCols) {
    Vec bs[kTileVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; v++) bs[v] = hn::Load(f, b + v * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++) {
      const Vec as = hn::Set(f, ai[i][r * a_depth]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; v++) sums[i][v] = hn::MulAdd(as, bs[v], sums[i][v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; v++) hn::StoreU(sums[i][v], f, c + i * c_stride + v * kLanes);
}

// Rows [r, r + depth) × columns [col, col + cols) of B to a panel; columns past `cols` are 0.
template <typename W>
HWY_INLINE void CopyPanel(const Product<W>& p, int64_t r, int64_t depth, int64_t col, int64_t cols, float* panel) {
  const Floats f;
  for (const W* from = p.b + r * p.b_stride + col; depth > 0; depth--, from += p.b_stride, panel += kTileCols) {
    for (int64_t i = 0; i < kTileCols; i += kLanes) {
      const int64_t left = cols - i;
      hn::Store(left >= kLanes ? LoadWeights(from + i) : left > 0 ? LoadWeightsPartly(from + i, left) : hn::Zero(f), f, panel + i);
    }
  }
}

template <int kRows, typename W>
HWY_INLINE void AddRows(const Product<W>& p, int64_t row, int64_t r, int64_t depth, int64_t col, int64_t cols, const float* panel) {
  const float* a = p.a + row * p.a_row + r * p.a_depth;
  int64_t a_row = p.a_row, a_depth = p.a_depth;
  float a_panel[kRows * kDepth];
  if (a_row == 1) {  // columns of dy: strides of a large power of two would fight for one set of the cache
    for (int64_t i = 0; i < depth; i++) std::memcpy(a_panel + i * kRows, a + i * a_depth, kRows * sizeof(float));
    a = a_panel, a_depth = kRows;
  }
  float* c = p.c + row * p.c_stride + col;
  if (cols == kTileCols) return AddTile<kRows>(a, a_row, a_depth, panel, depth, c, p.c_stride);
  HWY_ALIGN float edge[kRows * kTileCols] = {};
  for (int i = 0; i < kRows; i++) std::copy_n(c + i * p.c_stride, cols, edge + i * kTileCols);
  AddTile<kRows>(a, a_row, a_depth, panel, depth, edge, kTileCols);
  for (int i = 0; i < kRows; i++) std::copy_n(edge + i * kTileCols, cols, c + i * p.c_stride);
}

template <typename W>
void AddBlock(const Product<W>& p, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  HWY_ALIGN float panel[kDepth * kTileCols];
  const int64_t tile_rows = EvenPiece(rows, kTileRows);
  for (int64_t i = row; !p.add && i < row + rows; i++) std::fill_n(p.c + i * p.c_stride + col, cols, 0.0f);
  for (int64_t r = 0; r < p.depth; r += kDepth) {
    const int64_t depth = std::min(kDepth, p.depth - r);
    CopyPanel(p, r, depth, col, cols, panel);
    for (int64_t i = 0; i < rows; i += tile_rows) {
      WithRows<kTileRows>(std::min(tile_rows, rows - i), [&](auto count) HWY_ATTR { AddRows<decltype(count)::value>(p, row + i, r, depth, col, cols, panel); });
    }
  }
}

template <typename W>
void AddProduct(ThreadPool& threads, const Product<W>& p) {
  const int64_t row_step = EvenPiece(p.rows, kBlockRows), row_parts = row_step ? CeilDiv(p.rows, row_step) : 0;
  threads.For(row_parts * CeilDiv(p.cols, kTileCols), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = i % row_parts * row_step, col = i / row_parts * kTileCols;
      AddBlock(p, row, std::min(row_step, p.rows - row), col, std::min(kTileCols, p.cols - col));
    }
  });
}

void AddColumnSums(ThreadPool& threads, const Tensor& dy, float* sums) {
  threads.For(dy.cols(), 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < dy.rows(); t++) {
      const float* row = dy.Row<float>(t);
      for (int64_t n = begin; n < end; n++) sums[n] += row[n];
    }
  });
}

void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw) {
  const float* dys = dy.as<float>();
  const int64_t rows = dy.rows(), in = w.weight.cols(), out = w.weight.rows();
  if (dx) {
    WithWeightType(w.weight.dtype(), [&]<typename W>(W) {
      AddProduct<W>(*ctx.threads,
                    {dys, dy.stride(0), 1, w.weight.as<W>(), w.weight.stride(0), dx.as<float>(), dx.stride(0), rows, in, out, into == Into::kAdd});
    });
  }
  if (dw.weight)
    AddProduct<float>(*ctx.threads, {dys, 1, dy.stride(0), x.as<float>(), x.stride(0), dw.weight.as<float>(), dw.weight.stride(0), out, in, rows, true});
  if (dw.bias) AddColumnSums(*ctx.threads, dy, dw.bias.as<float>());
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(LinearBackward);
void LinearBackward(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& dy, Into into, const Tensor& dx, const LinearWeight& dw) {
  HWY_DYNAMIC_DISPATCH(LinearBackward)(ctx, x, w, dy, into, dx, dw);
}

}  // namespace bamba::cpu
#endif
