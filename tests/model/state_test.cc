// The state of sequences, as ops/batch.h describes it, on every device: whatever the calls, the numbers are those of one call without any state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "model/bamba.h"
#include "ops/cpu/simd.h"
#include "tests/support/device.h"
#include "tests/support/random_model.h"
#include "tests/support/tested.h"

namespace bamba {
namespace {

struct DeviceKind {
  std::string name;
  const OpTable* table;
  Dtype dtype;
  std::optional<cpu::SimdLevel> simd;
};

std::vector<DeviceKind> Devices() {
  std::vector<DeviceKind> devices = {{"ref", &ref::kTable, Dtype::kF64, {}}};
  for (cpu::SimdLevel level : cpu::SimdLevels()) devices.push_back({std::string("cpu_") + cpu::Name(level), &TestedTable(), Dtype::kF32, level});
  return devices;
}

// Slots and pages of a model, as full of NaN as memory that somebody else has used. Sequence i uses slot slots − 1 − i, and pages in a random order.
struct Memory {
  Workspace workspace{size_t{1} << 28};
  States states;
  std::vector<std::vector<int32_t>> pages;

  Memory(const Config& c, Dtype dtype, int64_t slots, int64_t tokens, int64_t history, std::mt19937_64& random) {
    const int64_t per_slot = (tokens + kKvBlock - 1) / kKvBlock, scan_ring = kSsdChunk * (history > 0 ? 2 : 1);
    std::vector<int32_t> order(static_cast<size_t>(slots * per_slot));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (int64_t i = 0; i < slots; i++) pages.emplace_back(order.begin() + i * per_slot, order.begin() + (i + 1) * per_slot);
    for (BlockKind kind : c.blocks) {
      MambaState& mamba = states.mamba.emplace_back();
      KvPages& kv = states.kv.emplace_back();
      if (kind == BlockKind::kMamba2) {
        if (c.d_conv - 1 + history > 0) mamba.conv = workspace.Take(dtype, {slots, c.d_conv - 1 + history, c.conv_dim()});
        mamba.xbc = workspace.Take(dtype, {slots, scan_ring, c.conv_dim()});
        mamba.dt = workspace.Take(dtype, {slots, scan_ring, c.mamba_heads});
        mamba.ssm = workspace.Take(dtype, {slots, history > 0 ? 2 : 1, c.mamba_heads, c.mamba_head_dim, c.mamba_state});
      }
      if (kind == BlockKind::kAttention)
        for (Tensor* t : {&kv.k, &kv.v}) *t = workspace.Take(dtype, {slots * per_slot, kKvBlock, c.kv_heads, c.head_dim});
    }
    for (MambaState& m : states.mamba)
      for (Tensor* t : {&m.conv, &m.xbc, &m.dt, &m.ssm})
        if (*t) std::memset(t->data(), 0xff, t->bytes());
    for (KvPages& kv : states.kv)
      for (Tensor* t : {&kv.k, &kv.v})
        if (*t) std::memset(t->data(), 0xff, t->bytes());
  }
};

class StateTest : public testing::TestWithParam<DeviceKind> {
 protected:
  StateTest() : device_(*GetParam().table, GetParam().dtype, 2, size_t{1} << 30) {
    if (GetParam().simd) cpu::SetSimd(*GetParam().simd);
  }

  int64_t Between(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1)); }

  std::vector<int32_t> Tokens(const Config& c, int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; i++) tokens.push_back(static_cast<int32_t>(Between(0, c.vocab - 1)));
    return tokens;
  }

  // Rows of hidden states as bytes, for comparison of bits.
  std::vector<std::string> Run(const Model& model, const Batch& batch, States& states) {
    Frame frame(device_.ctx);
    Tensor hidden = device_.ctx.Temp({batch.wanted ? static_cast<int64_t>(batch.wanted->size()) : batch.rows(), model.config.dim});
    Forward(device_.ctx, model.config, model.weights, batch, states, hidden);
    std::vector<std::string> rows;
    for (int64_t i = 0; i < hidden.rows(); i++)
      rows.emplace_back(static_cast<const char*>(hidden.At(i).data()), static_cast<size_t>(hidden.cols()) * SizeOf(hidden.dtype()));
    return rows;
  }

  std::vector<std::string> RunStateless(const Model& model, const std::vector<int32_t>& tokens) {
    States none;
    return Run(model, StatelessBatch(tokens), none);
  }

  std::mt19937_64 random_{3};
  Device device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, StateTest, testing::ValuesIn(Devices()), [](const auto& info) { return info.param.name; });

std::vector<Config> Configs() {
  std::vector<Config> configs = {TinyConfig(2, {1}), TinyConfig(2, {}), TinyConfig(2, {0, 1}), TinyConfig(1, {})};
  configs[1].d_conv = 1;
  configs[3].d_conv = 7;
  return configs;
}

TEST_P(StateTest, WantedRowsAreThoseOfAllRows) {
  for (const Config& config : Configs()) {
    const Model model = RandomModel(config, 4, GetParam().dtype);
    Batch batch = StatelessBatch(Tokens(config, 70));
    batch.sequences = {{0, 40, 0}, {40, 30, 0}};
    States none;
    const std::vector<std::string> all = Run(model, batch, none);
    for (const std::vector<int64_t>& wanted : {std::vector<int64_t>{}, {39}, {0, 1, 39, 69}}) {
      batch.wanted = wanted;
      const std::vector<std::string> rows = Run(model, batch, none);
      ASSERT_EQ(rows.size(), wanted.size());
      for (size_t i = 0; i < wanted.size(); i++) EXPECT_EQ(rows[i], all[static_cast<size_t>(wanted[i])]) << wanted[i];
    }
  }
}

TEST_P(StateTest, AnySplitOfAnyMixture) {
  for (const Config& config : Configs())
    for (int64_t history : {0, 13}) {
      const Model model = RandomModel(config, 4, GetParam().dtype);
      const int64_t count = 3;
      Memory memory(config, GetParam().dtype, count, 200, history, random_);
      std::vector<std::vector<int32_t>> tokens;
      std::vector<std::vector<std::string>> expected;
      std::vector<int64_t> position(count);
      for (int64_t i = 0; i < count; i++) tokens.push_back(Tokens(config, Between(1, 200))), expected.push_back(RunStateless(model, tokens.back()));
      const auto left = [&](int64_t i) { return static_cast<int64_t>(tokens[i].size()) - position[i]; };
      while (left(0) + left(1) + left(2) > 0) {
        Batch batch;
        std::vector<std::string> due;
        for (int64_t i = 0; i < count; i++) {
          const int64_t most = std::min<int64_t>(left(i), Between(0, 2) == 0 ? 90 : 3), rows = Between(0, most);
          batch.sequences.push_back({batch.rows(), rows, position[i], static_cast<int32_t>(count - 1 - i), memory.pages[i].data()});
          batch.tokens.insert(batch.tokens.end(), tokens[i].begin() + position[i], tokens[i].begin() + position[i] + rows);
          due.insert(due.end(), expected[i].begin() + position[i], expected[i].begin() + position[i] + rows);
          position[i] += rows;
        }
        ASSERT_TRUE(Run(model, batch, memory.states) == due);
      }
    }
}

// With longer rings and two boundaries, a sequence may go on from any of its last kSsdChunk positions.
TEST_P(StateTest, RollBackIsASmallerPosition) {
  for (const Config& config : Configs()) {
    const Model model = RandomModel(config, 5, GetParam().dtype);
    for (int trial = 0; trial < 10; trial++) {
      Memory memory(config, GetParam().dtype, 1, 200, kSsdChunk, random_);
      const int64_t first = Between(1, 120), back = Between(1, std::min(kSsdChunk, first));
      std::vector<int32_t> tokens = Tokens(config, first);
      Batch batch = StatelessBatch(tokens);
      batch.sequences[0].slot = 0, batch.sequences[0].pages = memory.pages[0].data();
      Run(model, batch, memory.states);

      const int64_t position = first - back;
      Batch other = StatelessBatch(Tokens(config, Between(1, 60)));
      other.sequences[0].slot = 0, other.sequences[0].position = position, other.sequences[0].pages = memory.pages[0].data();
      tokens.resize(static_cast<size_t>(position));
      tokens.insert(tokens.end(), other.tokens.begin(), other.tokens.end());
      std::vector<std::string> expected = RunStateless(model, tokens);
      expected.erase(expected.begin(), expected.begin() + position);
      ASSERT_TRUE(Run(model, other, memory.states) == expected) << "back " << back << " from " << first;
    }
  }
}

}  // namespace
}  // namespace bamba
