#include "eval/hidden_states.h"

namespace bamba {

HiddenStates ForwardHiddenStates(Context& ctx, const Model& model, std::span<const int32_t> tokens) {
  const Config& c = model.config;
  const int64_t rows = static_cast<int64_t>(tokens.size()), count = c.layers() + 1;
  HiddenStates out{.storage = Buffer(static_cast<size_t>(count * rows * c.dim) * sizeof(float))};
  for (int64_t i = 0; i < count; i++)
    out.states.push_back(Tensor(out.storage.data() + static_cast<size_t>(i * rows * c.dim) * sizeof(float), Dtype::kF32, {rows, c.dim}));

  int64_t next = 0;
  const auto outer = std::exchange(ctx.observer, [&](std::string_view op, int layer, const Tensor& output) {
    const size_t after = static_cast<size_t>(layer + 1);  // the sub-block that reads this output
    const bool before_mixer = after < c.blocks.size() && c.blocks[after] != BlockKind::kSwiGlu;
    if (op == "Embed" || (op == "Residual" && before_mixer)) ops::ToHost(ctx, output, out.states[static_cast<size_t>(next++)].data());
  });
  States stateless;
  out.last = ctx.Temp({rows, c.dim});
  Forward(ctx, c, model.weights, StatelessBatch({tokens.begin(), tokens.end()}), stateless, out.last);
  ctx.observer = outer;
  std::vector<char> numbers(out.last.bytes());
  ops::ToHost(ctx, out.last, numbers.data());
  Convert(numbers.data(), out.last.dtype(), out.states.back().data(), Dtype::kF32, static_cast<size_t>(out.last.size()));
  CHECK_EQ(next + 1, count);
  return out;
}

}  // namespace bamba
