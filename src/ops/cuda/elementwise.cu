#include <algorithm>

#include "ops/cuda/rows.cuh"

namespace bamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocksY = 65535;

// The units that memory is moved in: as many numbers of a type as 16 bytes hold, or one.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

// In one access, which the compiler doesn't always see.
template <typename Unit>
__device__ __forceinline__ void Store(Unit* to, const Unit& unit) {
  if constexpr (sizeof(Unit) == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(&unit);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  } else {
    *to = unit;
  }
}

bool Aligned(const void* p, int64_t bytes = 16) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0; }
bool RowsAligned(const Tensor& t, int64_t bytes = 16) {
  return Aligned(t.data(), bytes) && (t.rows() <= 1 || t.stride(0) * static_cast<int64_t>(SizeOf(t.dtype())) % bytes == 0);
}

// Any tensor as rows and columns; what isn't a matrix is contiguous, and so one row.
Tensor AsMatrix(const Tensor& t) { return t.dims() == 2 ? t : t.View({1, t.size()}); }

// Blocks of kThreads units in x, rows in y (which walks on where there are more rows than y can count).
dim3 GridOf(int64_t units, int64_t rows) {
  return dim3(static_cast<unsigned>(DivideUp(units, kThreads)), static_cast<unsigned>(std::min(rows, kMostBlocksY)));
}
__device__ int64_t UnitOfThread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

template <typename W, int kCount>
__global__ void __launch_bounds__(kThreads) EmbedKernel(const int32_t* tokens, MatrixView<const W> table, float scale, MatrixView<float> x, int64_t rows, int64_t units) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t unit = UnitOfThread();
  if (unit >= units) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const auto from = *reinterpret_cast<const Pack<W, kCount>*>(table.Row(tokens[row]) + unit * kCount);
    constexpr int kStore = kCount < 4 ? kCount : 4;
#pragma unroll
    for (int part = 0; part < kCount; part += kStore) {
      Pack<float, kStore> to;
#pragma unroll
      for (int i = 0; i < kStore; i++) to.at[i] = scale * ToFloat(from.at[part + i]);
      Store(reinterpret_cast<Pack<float, kStore>*>(x.Row(row) + unit * kCount + part), to);
    }
  }
}

// Every thread takes its units of both inputs before it writes, so y may be gate.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) SwiGluKernel(MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y, int64_t rows, int64_t units) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t unit = UnitOfThread();
  if (unit >= units) return;
  using Unit = Pack<T, kCount>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const Unit g = *reinterpret_cast<const Unit*>(gate.Row(row) + unit * kCount), u = *reinterpret_cast<const Unit*>(up.Row(row) + unit * kCount);
    Unit out;
#pragma unroll
    for (int i = 0; i < kCount; i++) out.at[i] = FromFloat<T>(Silu<T>(ToFloat(g.at[i])) * ToFloat(u.at[i]));
    Store(reinterpret_cast<Unit*>(y.Row(row) + unit * kCount), out);
  }
}

// The rows to keep travel as a parameter of the kernel, some at a time.
constexpr int kRowsAtATime = 256;
struct RowsToKeep {
  int64_t row[kRowsAtATime];
};

// Row first + i becomes row keep[i] ≥ first + i. A thread walks down one column of units and takes some rows at once: what it reads later lies below all that
// it has written.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) KeepRowsKernel(char* x, int64_t stride, int64_t units, int64_t first, int count, const __grid_constant__ RowsToKeep keep) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= units) return;
  constexpr int kAhead = 8;
  char* const column = x + unit * static_cast<int64_t>(sizeof(Unit));
  for (int i = 0; i < count; i += kAhead) {
    Unit held[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; j++)
      if (i + j < count) held[j] = *reinterpret_cast<const Unit*>(column + keep.row[i + j] * stride);
#pragma unroll
    for (int j = 0; j < kAhead; j++)
      if (i + j < count) *reinterpret_cast<Unit*>(column + (first + i + j) * stride) = held[j];
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) ScaleKernel(MatrixView<T> x, float scale, int64_t rows, int64_t units) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t unit = UnitOfThread();
  if (unit >= units) return;
  using Unit = Pack<T, kCount>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    Unit* at = reinterpret_cast<Unit*>(x.Row(row) + unit * kCount);
    Unit v = *at;
#pragma unroll
    for (int i = 0; i < kCount; i++) v.at[i] = FromFloat<T>(scale * ToFloat(v.at[i]));
    Store(at, v);
  }
}

template <typename Unit>
__global__ void __launch_bounds__(kThreads) ZeroKernel(char* x, int64_t stride, int64_t rows, int64_t units) {
  LetNextBegin();
  WaitForPrevious();
  const int64_t unit = UnitOfThread();
  if (unit >= units) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) *reinterpret_cast<Unit*>(x + row * stride + unit * static_cast<int64_t>(sizeof(Unit))) = Unit{};
}

// Σ e^(x − top) of some numbers and the largest of them. Sums are double: a vocabulary's length adds no error.
struct SumOfExps {
  float top;
  double sum;
};
__device__ __forceinline__ float Finite(float top) { return top == -INFINITY ? 0 : top; }
__device__ __forceinline__ SumOfExps Merge(const SumOfExps& a, const SumOfExps& b) {
  const float top = fmaxf(a.top, b.top), shift = Finite(top);
  return {top, a.sum * static_cast<double>(expf(a.top - shift)) + b.sum * static_cast<double>(expf(b.top - shift))};
}

constexpr int kEntropyThreads = 512;

// A block takes a row, in one pass.
__global__ void __launch_bounds__(kEntropyThreads) CrossEntropyKernel(MatrixView<const float> logits, int64_t vocab, const int32_t* labels, float* nll) {
  __shared__ SumOfExps warps[kEntropyThreads / 32];
  LetNextBegin();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int32_t label = labels[row];
  if (label == ops::kIgnoredLabel) {
    if (threadIdx.x == 0) nll[row] = 0;
    return;
  }
  const float* x = logits.Row(row);
  constexpr int kAtOnce = 8;
  SumOfExps mine = {-INFINITY, 0};
  for (int64_t begin = threadIdx.x; begin < vocab; begin += kAtOnce * kEntropyThreads) {
    float v[kAtOnce];
    float top = mine.top;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int64_t j = begin + i * kEntropyThreads;
      v[i] = j < vocab ? x[j] : -INFINITY;
      top = fmaxf(top, v[i]);
    }
    const float shift = Finite(top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) sum += expf(v[i] - shift);
    mine = {top, (mine.top == top ? mine.sum : mine.sum * static_cast<double>(expf(mine.top - shift))) + static_cast<double>(sum)};
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    mine = Merge(mine, {__shfl_down_sync(~0u, mine.top, lanes), __shfl_down_sync(~0u, mine.sum, lanes)});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kEntropyThreads / 32; i++) mine = Merge(mine, warps[i]);
  nll[row] = static_cast<float>(log(mine.sum) + (static_cast<double>(mine.top) - static_cast<double>(x[label])));
}

}  // namespace

void Embed(Context& ctx, const Batch& batch, const Tensor& table, double scale, const Tensor& x) {
  State& state = StateOf(ctx);
  const int64_t rows = batch.rows(), columns = x.cols();
  if (rows == 0 || columns == 0) return;
  CHECK(state.batch().rows == rows && x.dtype() == Dtype::kF32);
  WithWeight(table.dtype(), [&](auto w) {
    using W = decltype(w);
    const auto run = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      Launch(state, EmbedKernel<W, kCount>, GridOf(columns / kCount, rows), kThreads, 0, state.batch().tokens, ViewOf<const W>(table), static_cast<float>(scale),
             ViewOf<float>(x), rows, columns / kCount);
    };
    constexpr int kCount = 16 / sizeof(W);
    RowsAligned(table) && RowsAligned(x) && columns % kCount == 0 ? run(std::integral_constant<int, kCount>()) : run(std::integral_constant<int, 1>());
  });
}

void SwiGlu(Context& ctx, const Tensor& gate, const Tensor& up, const Tensor& y) {
  State& state = StateOf(ctx);
  const int64_t rows = y.rows(), columns = y.cols();
  if (rows == 0 || columns == 0) return;
  WithActivation(y.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      Launch(state, SwiGluKernel<T, kCount>, GridOf(columns / kCount, rows), kThreads, 0, ViewOf<const T>(gate), ViewOf<const T>(up), ViewOf<T>(y), rows,
             columns / kCount);
    };
    constexpr int kCount = 16 / sizeof(T);
    RowsAligned(gate) && RowsAligned(up) && RowsAligned(y) && columns % kCount == 0 ? run(std::integral_constant<int, kCount>())
                                                                                   : run(std::integral_constant<int, 1>());
  });
}

void KeepRows(Context& ctx, std::span<const int64_t> rows, const Tensor& x) {
  State& state = StateOf(ctx);
  const auto size = static_cast<int64_t>(SizeOf(x.dtype())), bytes = x.cols() * size, stride = x.stride(0) * size;
  size_t begin = 0;
  while (begin < rows.size() && rows[begin] == static_cast<int64_t>(begin)) begin++;  // these lie there already
  for (; begin < rows.size() && bytes > 0; begin += kRowsAtATime) {
    const size_t count = std::min<size_t>(kRowsAtATime, rows.size() - begin);
    RowsToKeep keep = {};
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(begin), count, keep.row);
    const auto run = [&](auto unit) {
      using Unit = decltype(unit);
      const auto units = bytes / static_cast<int64_t>(sizeof(Unit));
      constexpr int kNarrow = 64;  // threads: few columns are spread over more multiprocessors
      Launch(state, KeepRowsKernel<Unit>, static_cast<unsigned>(DivideUp(units, kNarrow)), kNarrow, 0, static_cast<char*>(x.data()), stride, units,
             static_cast<int64_t>(begin), static_cast<int>(count), keep);
    };
    if (RowsAligned(x) && bytes % 16 == 0) run(uint4{});
    else if (RowsAligned(x, 4) && bytes % 4 == 0) run(uint32_t{});
    else run(uint16_t{});
  }
}

void CrossEntropy(Context& ctx, const Tensor& logits, std::span<const int32_t> labels, const Tensor& nll) {
  State& state = StateOf(ctx);
  if (labels.empty()) return;
  CHECK(nll.contiguous() && labels.size_bytes() <= State::kScratchBytes);
  state.Upload(state.scratch(), labels.data(), labels.size_bytes());
  Launch(state, CrossEntropyKernel, static_cast<unsigned>(labels.size()), kEntropyThreads, 0, MatrixView<const float>{logits.as<float>(), logits.stride(0)},
         logits.cols(), reinterpret_cast<const int32_t*>(state.scratch()), nll.as<float>());
}

void Scale(Context& ctx, const Tensor& x, double scale) {
  State& state = StateOf(ctx);
  if (x.size() == 0) return;
  const Tensor m = AsMatrix(x);
  WithActivation(m.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      Launch(state, ScaleKernel<T, kCount>, GridOf(m.cols() / kCount, m.rows()), kThreads, 0, ViewOf<T>(m), static_cast<float>(scale), m.rows(), m.cols() / kCount);
    };
    constexpr int kCount = 16 / sizeof(T);
    RowsAligned(m) && m.cols() % kCount == 0 ? run(std::integral_constant<int, kCount>()) : run(std::integral_constant<int, 1>());
  });
}

void Zero(Context& ctx, const Tensor& x) {
  State& state = StateOf(ctx);
  if (x.size() == 0) return;
  const Tensor m = AsMatrix(x);
  const auto size = static_cast<int64_t>(SizeOf(m.dtype())), bytes = m.cols() * size;
  const auto run = [&](auto unit) {
    using Unit = decltype(unit);
    const auto units = bytes / static_cast<int64_t>(sizeof(Unit));
    Launch(state, ZeroKernel<Unit>, GridOf(units, m.rows()), kThreads, 0, static_cast<char*>(m.data()), m.stride(0) * size, m.rows(), units);
  };
  if (RowsAligned(m) && bytes % 16 == 0) run(uint4{});
  else run(uint16_t{});
}

}  // namespace bamba::cuda
