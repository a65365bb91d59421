// Norms: a block takes rows (or a group of each), and keeps one in registers between the sum of squares and the product. Who holds which columns, and so the
// order of the sum, is a function of the row's length alone.
#include <algorithm>

#include "ops/cuda/rows.cuh"

namespace bamba::cuda {
namespace {

// Threads for a row, eight columns each at a time.
int ThreadsFor(int64_t n) { return static_cast<int>(std::min<int64_t>(1024, DivideUp(DivideUp(n, 8), 32) * 32)); }

// Eight numbers as they lie in memory, at a multiple of 16 bytes.
template <typename T>
struct Eight;
template <>
struct Eight<float> {
  float4 a, b;
  __device__ static Eight At(const float* p) { return {*reinterpret_cast<const float4*>(p), *reinterpret_cast<const float4*>(p + 4)}; }
  __device__ void Floats(float (&v)[8]) const { v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w; }
};
template <>
struct Eight<bf16> {
  uint4 u;
  __device__ static Eight At(const bf16* p) { return {*reinterpret_cast<const uint4*>(p)}; }
  __device__ void Floats(float (&v)[8]) const { Unpack8(u, v); }
};

// The rows of a matrix that is read: First(row, column…) → eight numbers before the norm. Fetch and Finish are the same in two steps.
template <typename T>
struct PlainRows {
  MatrixView<const T> x;
  using Raw = Eight<T>;
  __device__ Raw Fetch(int64_t row, int64_t column) const { return Raw::At(x.Row(row) + column); }
  __device__ void Finish(const Raw& raw, int64_t, int64_t, float (&v)[8]) const { raw.Floats(v); }
  __device__ void First(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const { Load8(x.Row(row) + column, whole, count, v); }
  __device__ void Again(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const { First(row, column, whole, count, v); }
};

// out = x + scale · y, written on the way; `out` may be x.
template <typename T>
struct AddedRows {
  const float* x;
  int64_t x_stride;
  MatrixView<const T> y;
  MatrixView<float> out;
  float scale;
  struct Raw {
    Eight<float> x;
    Eight<T> y;
  };
  __device__ Raw Fetch(int64_t row, int64_t column) const { return {Eight<float>::At(x + row * x_stride + column), Eight<T>::At(y.Row(row) + column)}; }
  __device__ void Finish(const Raw& raw, int64_t row, int64_t column, float (&v)[8]) const {
    float more[8];
    raw.x.Floats(v), raw.y.Floats(more);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(scale, more[i], v[i]);
    Store8(out.Row(row) + column, true, 8, v);
  }
  __device__ void First(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const {
    float more[8];
    Load8(x + row * x_stride + column, whole, count, v);
    Load8(y.Row(row) + column, whole, count, more);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(scale, more[i], v[i]);
    Store8(out.Row(row) + column, whole, count, v);
  }
  __device__ void Again(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const { Load8(out.Row(row) + column, whole, count, v); }
};

// y · silu(z)
template <typename T>
struct GatedRows {
  MatrixView<const T> y, z;
  struct Raw {
    Eight<T> y, z;
  };
  __device__ Raw Fetch(int64_t row, int64_t column) const { return {Eight<T>::At(y.Row(row) + column), Eight<T>::At(z.Row(row) + column)}; }
  __device__ void Finish(const Raw& raw, int64_t, int64_t, float (&v)[8]) const {
    float gate[8];
    raw.y.Floats(v), raw.z.Floats(gate);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * Silu<T>(gate[i]);
  }
  __device__ void First(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const {
    float gate[8];
    Load8(y.Row(row) + column, whole, count, v);
    Load8(z.Row(row) + column, whole, count, gate);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * Silu<T>(gate[i]);
  }
  __device__ void Again(int64_t row, int64_t column, bool whole, int count, float (&v)[8]) const { First(row, column, whole, count, v); }
};

// Block (row, group): columns [group · n, group · n + n). kVectors · 8 · threads ≥ n; 0: rows of any length, read twice. `aligned`: eights lie at multiples of
// 16 bytes.
template <typename Rows, typename T, int kVectors>
__global__ void __launch_bounds__(1024) Normalize(Rows rows, const float* w, int64_t n, float eps, bool aligned, MatrixView<T> to) {
  __shared__ float partial[32];
  LetNextBegin();
  const int64_t row = blockIdx.x, first = blockIdx.y * n;
  const auto each = [&](auto&& body) {
    if constexpr (kVectors > 0) {
#pragma unroll
      for (int k = 0; k < kVectors; k++) {
        const int64_t i = (static_cast<int64_t>(k) * blockDim.x + threadIdx.x) * 8;
        if (i < n) body(k, i, static_cast<int>(n - i < 8 ? n - i : 8));
      }
    } else {
      for (int64_t i = threadIdx.x * 8; i < n; i += blockDim.x * 8) body(0, i, static_cast<int>(n - i < 8 ? n - i : 8));
    }
  };
  constexpr int kKept = kVectors > 0 ? kVectors : 1;
  float v[kKept][8], weights[kKept][8];
  if constexpr (kVectors > 0) each([&](int k, int64_t i, int count) { Load8(w + first + i, aligned && count == 8, count, weights[k]); });
  WaitForPrevious();
  float sum = 0;
  each([&](int k, int64_t i, int count) {
    rows.First(row, first + i, aligned && count == 8, count, v[k]);
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(v[k][j], v[k][j], sum);
  });
  const float scale = 1.0f / sqrtf(BlockSum(sum, partial) / static_cast<float>(n) + eps);
  each([&](int k, int64_t i, int count) {
    const bool whole = aligned && count == 8;
    if constexpr (kVectors == 0) {
      rows.Again(row, first + i, whole, count, v[0]);
      Load8(w + first + i, whole, count, weights[0]);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) v[k][j] = scale * v[k][j] * weights[k][j];
    Store8(to.Row(row) + first + i, whole, count, v[k]);
  });
}

// For aligned rows of n = 8 i ≤ 8 · kVectors · threads columns. Block (b, group) takes rows b, b + blocks, …; the next one is on its way while one is summed up.
template <typename Rows, typename T, int kVectors>
__global__ void __launch_bounds__(512) NormalizeAligned(Rows rows, const float* w, int n, float eps, MatrixView<T> to, int64_t count) {
  __shared__ float partial[2][32];
  LetNextBegin();
  const int64_t first = static_cast<int64_t>(blockIdx.y) * n;
  const auto each = [&](auto&& body) {
#pragma unroll
    for (int k = 0; k < kVectors; k++) {
      const int i = (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * 8;
      if (i < n) body(k, first + i);
    }
  };
  Eight<float> weights[kVectors];
  each([&](int k, int64_t column) { weights[k] = Eight<float>::At(w + column); });
  const float share = 1.0f / static_cast<float>(n);
  WaitForPrevious();
  typename Rows::Raw raw[kVectors];
  each([&](int k, int64_t column) { raw[k] = rows.Fetch(blockIdx.x, column); });
  int parity = 0;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x, parity ^= 1) {
    float v[kVectors][8], sum = 0;
    each([&](int k, int64_t column) {
      rows.Finish(raw[k], row, column, v[k]);
#pragma unroll
      for (int j = 0; j < 8; j++) sum = fmaf(v[k][j], v[k][j], sum);
    });
    const int64_t next = row + gridDim.x;
    if (next < count) each([&](int k, int64_t column) { raw[k] = rows.Fetch(next, column); });
    const float mean = BlockSum(sum, partial[parity]) * share + eps;
    float scale;
    if constexpr (std::is_same_v<T, float>) scale = 1.0f / sqrtf(mean);
    else scale = rsqrtf(mean);
    each([&](int k, int64_t column) {
      float weight[8];
      weights[k].Floats(weight);
#pragma unroll
      for (int j = 0; j < 8; j++) v[k][j] = scale * v[k][j] * weight[j];
      Store8(to.Row(row) + column, true, 8, v[k]);
    });
  }
}

template <typename T, typename Rows, int kVectors>
void LaunchAligned(State& device, const Rows& rows, const float* w, int64_t n, int64_t groups, double eps, const Tensor& to) {
  const auto kernel = NormalizeAligned<Rows, T, kVectors>;
  const int threads = static_cast<int>(DivideUp(n, 256 * kVectors) * 32);
  int at_once = 0;  // blocks of a multiprocessor
  BAMBA_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, threads, 0));
  const int64_t blocks = std::min(to.rows(), std::max<int64_t>(1, int64_t{at_once} * device.sms() / groups));
  Launch(device, kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(groups)), dim3(static_cast<unsigned>(threads)), 0, rows, w,
         static_cast<int>(n), static_cast<float>(eps), ViewOf<T>(to), to.rows());
}

template <typename T, typename Rows>
void LaunchNormalize(Context& ctx, const Rows& rows, const Tensor& w, int64_t groups, double eps, bool aligned, const Tensor& to) {
  CHECK_MSG(w.dtype() == Dtype::kF32, "norm's weights in {}", Name(w.dtype()));
  const int64_t n = to.cols() / groups;
  if (to.rows() == 0 || n == 0) return;
  aligned = aligned && Aligned16(w.data()) && Aligned16(to) && (groups == 1 || n % 8 == 0);
  const auto* weights = static_cast<const float*>(w.data());
  if (aligned && n % 8 == 0 && n <= 8192) {
    const auto launch = n <= 2048 ? LaunchAligned<T, Rows, 1> : LaunchAligned<T, Rows, 2>;
    return launch(StateOf(ctx), rows, weights, n, groups, eps, to);
  }
  const int threads = ThreadsFor(n);
  const int64_t vectors = DivideUp(n, int64_t{8} * threads);
  const auto kernel = vectors == 1 ? Normalize<Rows, T, 1> : Normalize<Rows, T, 0>;
  const dim3 grid(static_cast<unsigned>(to.rows()), static_cast<unsigned>(groups));
  Launch(StateOf(ctx), kernel, grid, dim3(static_cast<unsigned>(threads)), 0, rows, weights, n, static_cast<float>(eps), aligned,
         ViewOf<T>(to));
}

}  // namespace

void RmsNorm(Context& ctx, const Tensor& x, const Tensor& w, double eps, const Tensor& y) {
  WithActivation(ctx.dtype, [&]<typename T>(T) { LaunchNormalize<T>(ctx, PlainRows<float>{ViewOf<const float>(x)}, w, 1, eps, Aligned16(x), y); });
}

void AddRmsNorm(Context& ctx, const Tensor& x, const Tensor& y, double scale, const Tensor& w, double eps, const Tensor& out, const Tensor& u) {
  WithActivation(ctx.dtype, [&]<typename T>(T) {
    const AddedRows<T> rows = {static_cast<const float*>(x.data()), x.stride(0), ViewOf<const T>(y), ViewOf<float>(out), static_cast<float>(scale)};
    LaunchNormalize<T>(ctx, rows, w, 1, eps, Aligned16(x) && Aligned16(y) && Aligned16(out), u);
  });
}

void GatedRmsNorm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w, int64_t groups, double eps, const Tensor& out) {
  WithActivation(ctx.dtype, [&]<typename T>(T) {
    LaunchNormalize<T>(ctx, GatedRows<T>{ViewOf<const T>(y), ViewOf<const T>(z)}, w, groups, eps, Aligned16(y) && Aligned16(z), out);
  });
}

}  // namespace bamba::cuda
