#include <vector>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

// Measured on H100 and H200. With Hopper's instructions, of few rows: two blocks share a tile where FirstHalf says so; else the skinny kernel is as fast as any
// for fewer than kFewOutputs outputs for each multiprocessor, which leave some of them without a tile of 64, and up to kSkinnyRowsOnHopper rows; the rest is
// Hopper's kernel. Past kHopperRows cuBLASLt, where it may be used.
constexpr int64_t kHopperRows = 64, kFewOutputs = 48, kSkinnyRowsOnHopper = 16;
static_assert(kHopperRows <= kHalvesRows);
// Whether Hopper's two kinds of tensor instructions round the sum of 16 products and the accumulator alike, so that a row may be one's or the other's. Nothing
// documents it; tests/cuda/linear_test.cc tries it. If not, invariant products go without wgmma.
constexpr bool kWgmmaAddsLikeMma = true;

void Multiply(Context& ctx, const Tensor& x, const void* weight, Dtype dtype, const Tensor& bias, int64_t out, const Tensor& y) {
  State& state = StateOf(ctx);
  if (x.rows() == 0 || out == 0) return;
  if (bias) CHECK_MSG(bias.dtype() == Dtype::kF32, "bias in {}", Name(bias.dtype()));
  const Product p{x.data(),   x.stride(0), weight, bias ? bias.as<float>() : nullptr, y.data(), y.stride(0), x.rows(), x.cols(), out,
                  y.dtype() == Dtype::kF32};
  if (x.dtype() != Dtype::kBf16 || dtype != Dtype::kBf16 || !VectorsFit(p)) return GeneralProduct(state, p, x.dtype(), dtype);
  const bool hopper = HasHopperProduct(state) && (kWgmmaAddsLikeMma || !ctx.invariant);
  const bool few_outputs = p.out <= kFewOutputs * state.sms();
  const int64_t skinny = !hopper ? kSkinnyRows : few_outputs ? kSkinnyRowsOnHopper : 0, own = hopper ? kHopperRows : kSkinnyRows;
  if (p.rows > own && !ctx.invariant && !p.bias && CublasProduct(state, p)) return;
  if (hopper && p.rows <= kHopperRows && FirstHalf(state, p) < p.in) return HalvesProduct(state, p);
  if (p.rows <= skinny) return SkinnyProduct(state, p, hopper);
  hopper ? HopperProduct(state, p) : TiledProduct(state, p);
}

bool Adjacent(const Tensor& a, const Tensor& b) {
  return static_cast<const char*>(a.data()) + a.bytes() == b.data() && a.dtype() == b.dtype();
}

}  // namespace

void Linear(Context& ctx, const Tensor& x, const LinearWeight& w, const Tensor& y) {
  Multiply(ctx, x, w.weight.data(), w.weight.dtype(), w.bias, w.weight.rows(), y);
}

// Matrices that lie one after the other are one.
void Linears(Context& ctx, const Tensor& x, std::initializer_list<LinearWeight> w, const Tensor& y) {
  int64_t column = 0;
  for (const LinearWeight* one = w.begin(); one != w.end();) {
    const LinearWeight& first = *one;
    int64_t out = first.weight.rows();
    for (one++; one != w.end() && Adjacent(one[-1].weight, one->weight); one++) {
      if (static_cast<bool>(first.bias) != static_cast<bool>(one->bias)) break;
      if (first.bias && !Adjacent(one[-1].bias, one->bias)) break;
      out += one->weight.rows();
    }
    Multiply(ctx, x, first.weight.data(), first.weight.dtype(), first.bias, out, y.Columns({column, out}));
    column += out;
  }
}

}  // namespace bamba::cuda
