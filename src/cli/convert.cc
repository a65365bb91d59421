#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/default_model.h"
#include "cli/verbs.h"
#include "io/checkpoint.h"

namespace bamba::cli {
namespace {

struct ConvertOptions {
  std::string in, out, form, dtype = "keep", shard_size = "5GB";
  bool force = false;
};

// "5GB", "300 MB", "2GiB", "1000000": decimal and binary units of bytes.
int64_t ParseBytes(const std::string& text) {
  size_t digits = 0;
  double number = 0;
  try {
    number = std::stod(text, &digits);
  } catch (const std::exception&) {
  }
  std::string unit = text.substr(digits);
  unit.erase(0, unit.find_first_not_of(' '));
  constexpr std::pair<const char*, double> kUnits[] = {{"", 1},      {"B", 1},        {"KB", 1e3},     {"kB", 1e3},     {"MB", 1e6},    {"GB", 1e9},
                                                       {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  for (const auto& [name, factor] : kUnits)
    if (unit == name && number * factor >= 1 && number * factor < 0x1p62) return static_cast<int64_t>(number * factor);
  throw UsageError("--shard-size {}: expected a size such as 5GB, 500MB or 2GiB", text);
}

void Convert(const ConvertOptions& o) {
  SaveOptions save{.shard_bytes = ParseBytes(o.shard_size), .carry_from = o.in, .replace = o.force};
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16})
    if (o.dtype == Name(dtype)) save.dtype = dtype;
  std::error_code ignored;
  if (std::filesystem::equivalent(o.in, o.out, ignored) || std::filesystem::equivalent(ModelFolder(o.in), o.out, ignored))
    throw UsageError("OUT is the model to read, {}; name another directory", o.in);
  CatchInterrupts();
  const auto start = std::chrono::steady_clock::now();
  const Model model = LoadModel(o.in);
  save.form = o.form.empty() ? OpenCheckpoint(o.in).config_file.form : o.form == "hf" ? CheckpointForm::kHuggingFace : CheckpointForm::kMambaSsm;
  std::unique_ptr<Progress> progress;
  save.on_progress = [&](int64_t done, int64_t total) {
    if (InterruptSignal()) throw Error("interrupted; {} was not written", o.out);
    if (!progress) progress = std::make_unique<Progress>("converting", total, "bytes");
    progress->Advance(done);
  };
  const SaveSummary written = SaveModel(model, o.out, save);
  progress.reset();
  if (save.form == CheckpointForm::kMambaSsm && model.config.ffn % kSsmMlpMultiple != 0)
    WriteAll(2, fmt::format("bamba: note: mamba_ssm's own MLP rounds the width {} up to a multiple of {}, so that package cannot load {}; bamba can\n",
                            model.config.ffn, kSsmMlpMultiple, o.out));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), bytes = static_cast<double>(written.bytes);
  WriteAll(kStandardOutput, fmt::format("{}: {} form, {} of weights in {} file{}, {} ({}/s)\n", o.out, Name(save.form), HumanBytes(bytes), written.files,
                                        written.files == 1 ? "" : "s", HumanSeconds(seconds), HumanBytes(bytes / seconds)));
}

}  // namespace

void AddConvert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  CLI::App* verb = app.add_subcommand("convert", "A checkpoint to another form, dtype or shard size");
  verb->add_option("IN", options->in, "Model to read: a directory, or a weights file beside its config.json")->type_name("MODEL")->required();
  verb->add_option("OUT", options->out, "Directory to write; it appears whole or not at all")->type_name("DIR")->required();
  verb->add_option("--to", options->form, "Form to write: hf (safetensors) or mamba_ssm (pytorch_model.bin); that of IN if not given")
      ->check(CLI::IsMember({"hf", "mamba_ssm"}));
  verb->add_option("--dtype", options->dtype, "Number type of all weights, or keep: each its own")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "f16"}))
      ->capture_default_str();
  verb->add_option("--shard-size", options->shard_size, "Largest safetensors file, such as 500MB or 2GiB; a tensor is never split")
      ->type_name("SIZE")
      ->capture_default_str();
  verb->add_flag("--force", options->force, "Where OUT holds a model, replace it and all that lies beside it");
  verb->callback([options] { Convert(*options); });
}

}  // namespace bamba::cli
