#include <cmath>

#include "ops/cuda/state.cuh"

namespace bamba::cuda {
namespace {

// Of the first pairs, computed by the host as the CPU's op computes them; the kernel finds those of wider heads itself.
constexpr int kGivenPairs = 128;
struct Frequencies {
  double of_pair[kGivenPairs];
};

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

// A block turns some rows; `half` cosines and sines of each lie in shared memory. Angles are double: in f32 a position of a million would leave a tenth of a
// radian in doubt.
template <typename T, int kCount>
__global__ void RopeKernel(MatrixView<T> x, DeviceBatch batch, RopeShape shape, int rows_of_block, const __grid_constant__ Frequencies frequencies) {
  extern __shared__ float2 turns[];  // [rows_of_block][half]: cosine, sine
  const int half = static_cast<int>(shape.dims / 2), heads = static_cast<int>(shape.heads), head_dim = static_cast<int>(shape.head_dim);
  LetNextBegin();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows_of_block;
  const int rows = static_cast<int>(min(static_cast<int64_t>(rows_of_block), batch.rows - first));
  for (int i = threadIdx.x; i < rows * half; i += blockDim.x) {
    const int64_t row = first + i / half;
    const int j = i % half;
    const DeviceSequence& s = batch.sequences[batch.row_sequence[row]];
    const double position = static_cast<double>(s.position + row - s.row);
    const double frequency =
        j < kGivenPairs ? frequencies.of_pair[j] : pow(shape.theta, -2.0 * static_cast<double>(j) / static_cast<double>(shape.dims));
    double sine, cosine;
    sincos(position * frequency, &sine, &cosine);
    turns[i] = {static_cast<float>(cosine), static_cast<float>(sine)};
  }
  WaitForPrevious();  // the batch is older than the step
  __syncthreads();
  using Unit = Pack<T, kCount>;
  const int units = half / kCount, of_row = heads * units;
  for (int i = threadIdx.x; i < rows * of_row; i += blockDim.x) {
    const int row = i / of_row, head = i % of_row / units, j = i % units * kCount;
    T* const a = x.Row(first + row) + static_cast<int64_t>(head) * head_dim + j;
    T* const b = a + half;
    Unit u = *reinterpret_cast<const Unit*>(a), v = *reinterpret_cast<const Unit*>(b);
#pragma unroll
    for (int n = 0; n < kCount; n++) {
      const float2 turn = turns[row * half + j + n];
      const float p = ToFloat(u.at[n]), q = ToFloat(v.at[n]);
      u.at[n] = FromFloat<T>(p * turn.x - q * turn.y);
      v.at[n] = FromFloat<T>(q * turn.x + p * turn.y);
    }
    *reinterpret_cast<Unit*>(a) = u;
    *reinterpret_cast<Unit*>(b) = v;
  }
}

}  // namespace

void Rope(Context& ctx, const Tensor& x, const RopeShape& shape, const Batch&) {
  State& state = StateOf(ctx);
  const int64_t rows = x.rows(), half = shape.dims / 2;
  if (rows == 0 || half == 0 || shape.heads == 0) return;
  CHECK(state.batch().rows == rows);
  CHECK_MSG(half <= 4096, "{} dims rotate", shape.dims);
  Frequencies frequencies = {};
  for (int64_t j = 0; j < half && j < kGivenPairs; j++)
    frequencies.of_pair[j] = std::pow(shape.theta, -2.0 * static_cast<double>(j) / static_cast<double>(shape.dims));
  WithActivation(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      // A block has about kUnits units to turn, of one row where that has so many.
      constexpr int64_t kUnits = 256;
      const int64_t units = shape.heads * half / kCount, together = std::max<int64_t>(1, std::min(kUnits / units, int64_t{32} * 128 / half));
      const auto threads = static_cast<unsigned>(std::min<int64_t>(256, DivideUp(std::max(units, half) * together, 32) * 32));
      Launch(state, RopeKernel<T, kCount>, static_cast<unsigned>(DivideUp(rows, together)), threads, static_cast<size_t>(together * half) * sizeof(float2),
             ViewOf<T>(x), state.batch(), shape, static_cast<int>(together), frequencies);
    };
    constexpr int64_t kWide = 16 / sizeof(T);
    const bool wide = half % kWide == 0 && shape.head_dim % kWide == 0 && x.stride(0) % kWide == 0 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0;
    wide ? run(std::integral_constant<int, kWide>()) : run(std::integral_constant<int, 1>());
  });
}

}  // namespace bamba::cuda
