#include <algorithm>
#include <boost/json.hpp>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/memory.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/default_model.h"
#include "cli/device_flags.h"
#include "cli/values.h"
#include "cli/verbs.h"
#include "engine/narrow.h"
#include "engine/plan.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "model/params.h"

namespace bamba::cli {
namespace {

struct Flags {
  std::string model;
  int64_t context = 4096;
  int32_t batch = 1;
  bool json = false;
  DeviceFlags device{.device = "cpu"};
};

// Sums over the parameters of one role or of one sub-block.
struct Group {
  int64_t tensors = 0, numbers = 0, bytes = 0;
  std::map<std::string, int64_t> dtypes;  // tensors of each
  void Add(const Param& p) {
    tensors++, numbers += p.size(), bytes += static_cast<int64_t>(p.tensor->bytes());
    dtypes[Name(p.tensor->dtype())]++;
  }
  std::string Dtypes() const {
    std::string s;
    for (const auto& [name, count] : dtypes) s += (s.empty() ? "" : ", ") + name;
    return s;
  }
};

std::string Bytes(int64_t n) { return HumanBytes(static_cast<double>(n)); }

// "12 layers: 0-3 mamba2, 4 attention, …" as runs of equal mixers.
std::string Layers(const Config& c) {
  std::vector<BlockKind> mixers;
  for (BlockKind kind : c.blocks)
    if (kind != BlockKind::kSwiGlu) mixers.push_back(kind);
  std::string s;
  for (size_t begin = 0, end; begin < mixers.size(); begin = end) {
    for (end = begin + 1; end < mixers.size() && mixers[end] == mixers[begin];) end++;
    s += fmt::format("{}{}{} {}", begin ? ", " : "", begin, end - begin > 1 ? fmt::format("-{}", end - 1) : "", Name(mixers[begin]));
  }
  return s;
}

void Row(const char* name, const std::string& value) { WriteAll(kStandardOutput, fmt::format("  {:<12} {}\n", name, value)); }

void PrintConfig(const Config& c) {
  WriteAll(kStandardOutput, "config\n");
  Row("layers", fmt::format("{}: {}", c.layers(), Layers(c)));
  Row("width", fmt::format("{}, vocabulary {}{}", Thousands(c.dim), Thousands(c.vocab), c.tied ? ", the head is the embedding" : ""));
  if (c.Count(BlockKind::kSwiGlu)) Row("swiglu", fmt::format("{}{}", Thousands(c.ffn), c.mlp_bias ? ", biases" : ""));
  if (c.Count(BlockKind::kMamba2))
    Row("mamba2",
        fmt::format("{} heads of {}, state {}, {} group{}, convolution {}{}{}, dt in [{}, {}]", c.mamba_heads, c.mamba_head_dim, c.mamba_state, c.mamba_groups,
                    c.mamba_groups == 1 ? "" : "s", c.d_conv, c.conv_bias ? " with bias" : "", c.mamba_bias ? ", biases" : "", c.dt_min, c.dt_max));
  if (c.Count(BlockKind::kAttention))
    Row("attention", fmt::format("{} heads of {} on {} key heads, {} dims rotate, theta {}{}", c.heads, c.head_dim, c.kv_heads, c.rope_dims, c.rope_theta,
                                 c.attention_bias ? ", biases" : ""));
  Row("norm", fmt::format("eps {}", c.eps));
  if (c.embedding_multiplier != 1 || c.residual_multiplier != 1 || c.logits_multiplier != 1 || c.attention_multiplier)
    Row("multipliers", fmt::format("embedding {}, residual {}, attention {}, logits {}", c.embedding_multiplier, c.residual_multiplier, c.attention().scale,
                                   c.logits_multiplier));
  if (c.context > 0) Row("trained for", fmt::format("{} tokens", Thousands(c.context)));
}

void PrintGroups(const char* title, const std::vector<std::pair<std::string, Group>>& groups) {
  WriteAll(kStandardOutput, fmt::format("{:<24} {:>8} {:>10} {:>10}  dtype\n", title, "tensors", "numbers", "bytes"));
  for (const auto& [name, g] : groups)
    WriteAll(kStandardOutput,
             fmt::format("  {:<22} {:>8} {:>10} {:>10}  {}\n", name, g.tensors, HumanCount(static_cast<double>(g.numbers)), Bytes(g.bytes), g.Dtypes()));
}

void PrintPlan(const Flags& flags, const MemoryPlan& plan, const Model& model, const Execution& execution) {
  WriteAll(kStandardOutput,
           fmt::format("memory for {} sequence{} of {} tokens on {}\n", flags.batch, flags.batch == 1 ? "" : "s", Thousands(flags.context), NameOf(execution)));
  Row("weights", plan.on_device ? Bytes(plan.weights)
                                : fmt::format("{}, mapped from the files: taken as they are touched, given back under pressure", Bytes(plan.weights)));
  if (!model.config.tied && !plan.on_device)
    Row("", fmt::format("of which {}, the embedding, are read row by row: only those of tokens that occur",
                        Bytes(static_cast<int64_t>(model.weights.embedding.weight.bytes()))));
  if (const int64_t narrow = BytesAsBf16(model, execution); narrow > 0)
    Row("", fmt::format("of which {} are held as {} of bf16, where all of their numbers are bf16 as the first ones are", Bytes(2 * narrow), Bytes(narrow)));
  Row("states", fmt::format("{}, {} a sequence whatever its length", Bytes(plan.states()), Bytes(plan.slot)));
  Row("keys, values", fmt::format("{}, {} for each {} tokens", Bytes(plan.kv()), Bytes(plan.page), kKvBlock));
  Row("temporaries", Bytes(plan.workspace));
  if (plan.on_device) Row("shared", fmt::format("{}, for partial sums and the batch", Bytes(plan.shared)));
  Row("total", fmt::format("{} of {} that {} has left", Bytes(plan.total()), Bytes(MemoryLeft(execution)), plan.on_device ? "the GPU" : "this machine"));
}

// The parameters by role, then by kind of sub-block.
struct Inventory {
  Group all;
  std::vector<std::pair<std::string, Group>> roles, blocks;

  explicit Inventory(Model& model) {
    const auto group = [](auto& groups, const std::string& name) -> Group& {
      const auto at = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == name; });
      return at != groups.end() ? at->second : groups.emplace_back(name, Group{}).second;
    };
    for (const Param& p : Parameters(model.config, model.weights)) {
      all.Add(p);
      group(roles, Name(p.role)).Add(p);
      group(blocks, p.block < 0 ? "outside of sub-blocks" : fmt::format("{:>3} {}", p.block, Name(model.config.blocks[static_cast<size_t>(p.block)]))).Add(p);
    }
  }
};

boost::json::object Json(const Group& g) {
  return {{"tensors", g.tensors}, {"numbers", g.numbers}, {"bytes", g.bytes}, {"dtypes", boost::json::value_from(g.dtypes)}};
}

boost::json::object Json(const Flags& flags, const CheckpointReport& report, const Inventory* inventory, const MemoryPlan* plan) {
  const Config& c = report.checkpoint.config_file.config;
  boost::json::array blocks;
  for (BlockKind kind : c.blocks) blocks.push_back(Name(kind));
  boost::json::object out = {{"model", flags.model},
                             {"form", Name(report.checkpoint.config_file.form)},
                             {"files", report.checkpoint.files},
                             {"parameters", ParameterCount(c)},
                             {"config",
                              {{"blocks", blocks},
                               {"vocab_size", c.vocab},
                               {"hidden_size", c.dim},
                               {"intermediate_size", c.ffn},
                               {"tie_word_embeddings", c.tied},
                               {"rms_norm_eps", c.eps},
                               {"mamba_n_heads", c.mamba_heads},
                               {"mamba_d_head", c.mamba_head_dim},
                               {"mamba_d_state", c.mamba_state},
                               {"mamba_n_groups", c.mamba_groups},
                               {"mamba_d_conv", c.d_conv},
                               {"num_attention_heads", c.heads},
                               {"num_key_value_heads", c.kv_heads},
                               {"head_dim", c.head_dim},
                               {"rotary_dims", c.rope_dims},
                               {"rope_theta", c.rope_theta},
                               {"max_position_embeddings", c.context}}},
                             {"missing", boost::json::value_from(report.missing)},
                             {"foreign", boost::json::value_from(report.foreign)},
                             {"mismatched", boost::json::value_from(report.mismatched)}};
  if (inventory) {
    boost::json::object roles, sub_blocks;
    for (const auto& [name, group] : inventory->roles) roles[name] = Json(group);
    for (const auto& [name, group] : inventory->blocks) sub_blocks[name] = Json(group);
    out["roles"] = roles, out["sub_blocks"] = sub_blocks;
  }
  if (plan)
    out["memory"] = {{"context", flags.context}, {"batch", flags.batch},         {"weights", plan->weights}, {"states", plan->states()},
                     {"kv", plan->kv()},         {"workspace", plan->workspace}, {"total", plan->total()}};
  return out;
}

void PrintNames(const char* what, const std::vector<std::string>& names) {
  for (const std::string& name : names) WriteAll(kStandardOutput, fmt::format("  {:<12} {}\n", what, name));
}

void RunInfo(Flags flags) {
  if (flags.model.empty()) flags.model = DefaultModel();
  const CheckpointReport report = InspectCheckpoint(flags.model);
  const size_t faults = report.missing.size() + report.foreign.size() + report.mismatched.size();
  std::unique_ptr<Model> model;
  std::unique_ptr<Inventory> inventory;
  MemoryPlan plan;
  Execution execution;
  if (faults == 0) {
    model = std::make_unique<Model>(LoadModel(flags.model));
    inventory = std::make_unique<Inventory>(*model);
    const bool attention = model->config.Count(BlockKind::kAttention) > 0;
    const PoolSize size = {.slots = flags.batch, .pages = attention ? PagesFor(flags.context) * flags.batch : 0};
    execution = flags.device.Open(false);
    const int64_t rows = std::max<int64_t>(PrefillRows(model->config, execution), flags.batch);
    plan = PlanMemory(*model, size, StepWorkspace(*model, rows, flags.batch, execution), execution);
  }
  if (flags.json) {
    WriteAll(kStandardOutput, JsonLine(Json(flags, report, inventory.get(), faults == 0 ? &plan : nullptr)) + "\n");
  } else {
    const Checkpoint& checkpoint = report.checkpoint;
    WriteAll(kStandardOutput, fmt::format("{} · {} parameters · {} form, {} file{} of weights\n", flags.model,
                                          HumanCount(static_cast<double>(ParameterCount(checkpoint.config_file.config))),
                                          checkpoint.config_file.form == CheckpointForm::kHuggingFace ? "Hugging Face" : "mamba_ssm", checkpoint.files,
                                          checkpoint.files == 1 ? "" : "s"));
    PrintConfig(checkpoint.config_file.config);
    if (faults == 0) {
      PrintGroups("parameters by role", inventory->roles);
      PrintGroups("by sub-block", inventory->blocks);
      PrintPlan(flags, plan, *model, execution);
      WriteAll(kStandardOutput, fmt::format("tensors\n  all {} present, none foreign\n", inventory->all.tensors));
    } else {
      WriteAll(kStandardOutput, "tensors\n");
      PrintNames("missing", report.missing);
      PrintNames("foreign", report.foreign);
      PrintNames("mismatched", report.mismatched);
    }
  }
  if (faults > 0)
    throw Error("{}: {} tensors missing, {} foreign, {} of another shape or dtype than config.json asks for; such a model is not loaded", flags.model,
                report.missing.size(), report.foreign.size(), report.mismatched.size());
}

}  // namespace

void AddInfo(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = app.add_subcommand("info", "What a model is made of, and the memory it takes");
  AddModel(*verb, flags->model);
  verb->add_option("--context", flags->context, "Tokens of a sequence to plan memory for")->transform(Between(int64_t{1}, int64_t{1} << 40))->capture_default_str();
  verb->add_option("--batch", flags->batch, "Sequences at a time to plan memory for")->transform(Between(1, 1 << 20))->capture_default_str();
  verb->add_option("--device", flags->device.device, "Whose memory to plan: cpu, cuda, or auto, which is cuda where there is a GPU")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_flag("--json", flags->json, "One JSON object");
  verb->footer("example: bamba info models/mini --context 8192 --batch 4");
  verb->callback([flags] { RunInfo(*flags); });
}

}  // namespace bamba::cli
