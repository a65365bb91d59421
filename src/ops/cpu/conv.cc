#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/conv.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cstring>

#include "ops/cpu/activations-inl.h"
#include "ops/cpu/rows.h"
#include "ops/op_table.h"

HWY_BEFORE_NAMESPACE();
namespace bamba::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kChannels = 128;  // of one piece of work
constexpr int64_t kTaps = 32;       // of the filter, transposed at a time

// The filters of channels [first, first + n): taps[k − begin][channel] for taps k of [begin, end).
void TransposeTaps(const Tensor& w, int64_t first, int64_t n, int64_t begin, int64_t end, float (*taps)[kChannels]) {
  const int64_t d_conv = w.shape(2);
  WithWeights(w, [&](const auto* weights) HWY_ATTR {
    for (int64_t c = 0; c < n; c++)
      for (int64_t k = begin; k < end; k++) taps[k - begin][c] = static_cast<float>(weights[(first + c) * d_conv + k]);
  });
}

// One sequence's rows [row, row + rows), its channels [first, first + n). An output starts from the bias and adds the taps in order of k; tokens that do not
// exist are left out.
void ConvSiluChannels(const Tensor& x, const Tensor& w, const Tensor& bias, const Sequence& s, const Tensor& ring, int64_t row, int64_t rows, int64_t first,
                      int64_t n, const Tensor& y) {
  const int64_t d_conv = w.shape(2);
  HWY_ALIGN float taps[kTaps][kChannels];
  HWY_ALIGN float start[kChannels] = {};
  if (bias) WithWeights(bias, [&](const auto* b) HWY_ATTR { std::transform(b + first, b + first + n, start, [](auto v) { return static_cast<float>(v); }); });

  const auto input = [&](int64_t token) { return (token >= s.position ? x.Row<float>(s.row + token - s.position) : RingRow(ring, s.slot, token)) + first; };
  for (int64_t begin = 0; begin < d_conv; begin += kTaps) {
    const int64_t end = std::min(d_conv, begin + kTaps);
    TransposeTaps(w, first, n, begin, end, taps);
    for (int64_t t = row; t < row + rows; t++) {
      const int64_t oldest = s.position + t - d_conv + 1;  // the token of tap 0
      const int64_t from = std::max(begin, -oldest);
      const float* inputs[kTaps];
      for (int64_t k = from; k < end; k++) inputs[k - begin] = input(oldest + k);
      float* out = y.Row<float>(s.row + t) + first;
      const auto add_taps = [&](auto count) HWY_ATTR {  // a number that the compiler knows, or none
        ForLanes(n, [&](auto lanes, int64_t i) HWY_ATTR {
          Vec sum = lanes.Load((begin == 0 ? start : out) + i);
          for (int64_t k = from; k < from + count(); k++) sum = hn::MulAdd(lanes.Load(taps[k - begin] + i), lanes.Load(inputs[k - begin] + i), sum);
          lanes.Store(end == d_conv ? Silu(sum) : sum, out + i);
        });
      };
      end - from == 4 ? add_taps(std::integral_constant<int, 4>()) : add_taps([&] { return end - from; });
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace bamba::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bamba::cpu {

HWY_EXPORT(ConvSiluChannels);

void CausalConvSilu(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Batch& batch, const MambaState& state, const Tensor& y) {
  constexpr int64_t kPieceChannels = 128, kPieceRows = 256;
  const int64_t sequences = static_cast<int64_t>(batch.sequences.size()), pieces = CeilDiv(x.cols(), kPieceChannels), taps = w.shape(2);
  if (x.rows() == 0) return;
  int64_t longest = 0;
  for (const Sequence& s : batch.sequences) longest = std::max(longest, s.rows);
  const int64_t row_step = std::max(kPieceRows, taps), parts = CeilDiv(longest, row_step);  // so only the first part of a sequence needs the ring
  const int64_t operations = std::min(row_step, x.rows() / sequences + 1) * kPieceChannels * (taps + 12);
  ctx.threads->For(sequences * parts * pieces, Grain(operations), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const Sequence& s = batch.sequences[static_cast<size_t>(i / pieces / parts)];
      const int64_t first = i % pieces * kPieceChannels, n = std::min(kPieceChannels, x.cols() - first), row = i / pieces % parts * row_step;
      if (row >= s.rows) continue;
      HWY_DYNAMIC_DISPATCH(ConvSiluChannels)(x, w, bias, s, state.conv, row, std::min(row_step, s.rows - row), first, n, y);
      // Nobody else reads these channels of the ring, and this piece has read what it needs.
      if (row == 0 && state.conv && s.slot >= 0) {
        ForKeptTokens(s, state.conv.shape(1), [&](int64_t token) {
          const float* from = x.Row<float>(s.row + token - s.position) + first;
          std::copy(from, from + n, RingRow(state.conv, s.slot, token) + first);
        });
      }
    }
  });
}

}  // namespace bamba::cpu
#endif
