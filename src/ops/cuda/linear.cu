#include <vector>

#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

void Multiply(Context& ctx, const Tensor& x, const void* weight, Dtype dtype, const Tensor& bias, int64_t out, const Tensor& y) {
  State& state = StateOf(ctx);
  if (x.rows() == 0 || out == 0) return;
  if (bias) CHECK_MSG(bias.dtype() == Dtype::kF32, "bias in {}", Name(bias.dtype()));
  const Product p{x.data(), x.stride(0), weight, bias ? bias.as<float>() : nullptr, y.data(), y.stride(0), x.rows(), x.cols(), out, y.dtype() == Dtype::kF32};
  if (x.dtype() != Dtype::kBf16 || dtype != Dtype::kBf16 || !VectorsFit(p)) return GeneralProduct(state, p, x.dtype(), dtype);
  if (!ctx.invariant && WideProduct(state, p)) return;
  const bool hopper = HasHopperProducts(state);
  // From how many rows on cuBLASLt is faster; where there are few outputs, one multiprocessor for a tile isn't enough, and it adds halves by another kernel.
  const int64_t few = !hopper ? kSkinnyRows : FirstHalf(state, p) < p.in ? kFewRows : 64;
  if (p.rows > few && !ctx.invariant && !p.bias && CublasProduct(state, p)) return;
  if (hopper)
    p.rows <= kFewRows ? FewRowsProduct(state, p) : HopperProduct(state, p);
  else
    p.rows <= kSkinnyRows ? SkinnyProduct(state, p) : TiledProduct(state, p);
}

bool Adjacent(const Tensor& a, const Tensor& b) { return static_cast<const char*>(a.data()) + a.bytes() == b.data() && a.dtype() == b.dtype(); }

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

void SwiGluLinears(Context& ctx, const Tensor& x, const LinearWeight& gate, const LinearWeight& up, const Tensor& gate_up, const Tensor& y) {
  const auto is_bf16 = [](const Tensor& t) { return t.dtype() == Dtype::kBf16; };
  if (!ctx.invariant && !gate.bias && !up.bias && is_bf16(x) && is_bf16(gate.weight) && is_bf16(up.weight)) {
    const Product p{x.data(), x.stride(0), gate.weight.data(), nullptr, y.data(), y.stride(0), x.rows(), x.cols(), gate.weight.rows(), false};
    if (WideProduct(StateOf(ctx), p, up.weight.data()) || LargeGatedProduct(StateOf(ctx), p, up.weight.data())) return;
  }
  Linears(ctx, x, {gate, up}, gate_up);
  SwiGlu(ctx, gate_up.Columns({0, y.cols()}), gate_up.Columns({y.cols(), y.cols()}), y);
}

}  // namespace bamba::cuda
