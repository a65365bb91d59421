#include "eval/reference.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "eval/hidden_states.h"
#include "model/params.h"
#include "ops/op_table.h"

namespace bamba {
namespace {

using Rows = std::vector<std::vector<int32_t>>;

// Integers [B, T] or [T] of a file, unchecked.
std::vector<std::vector<int64_t>> ReadIntegers(const SafetensorsFile& file, const StoredTensor& stored) {
  const Tensor& t = stored.tensor;
  if (!t || (t.dtype() != Dtype::kI64 && t.dtype() != Dtype::kI32) || t.dims() > 2)
    throw Error("{}: '{}' is {} {}; expected [B, T] integers (I64 or I32)", file.path(), stored.name, stored.dtype, ShapeString(stored.shape));
  const int64_t rows = t.dims() == 2 ? t.rows() : 1, columns = t.shape(t.dims() - 1);
  std::vector<std::vector<int64_t>> out(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows * columns; i++)
    out[static_cast<size_t>(i / columns)].push_back(t.dtype() == Dtype::kI64 ? t.as<int64_t>()[i] : t.as<int32_t>()[i]);
  return out;
}

Rows Tokens(const SafetensorsFile& file, std::string_view name, const std::vector<std::vector<int64_t>>& integers, int64_t vocab) {
  Rows rows;
  for (const auto& row : integers) {
    auto& tokens = rows.emplace_back();
    for (int64_t id : row) {
      if (id < 0 || id >= vocab) throw Error("{}: '{}' holds {}; expected token ids below the model's vocabulary of {}", file.path(), name, id, vocab);
      tokens.push_back(static_cast<int32_t>(id));
    }
  }
  return rows;
}

// The numbers of a tensor of the reference; absent where the file has none of that name.
Tensor FindFloat(const SafetensorsFile& file, std::string_view name, const std::vector<int64_t>& shape) {
  const StoredTensor* stored = file.Find(name);
  if (!stored) return {};
  if (stored->dtype != "F32" || stored->shape != shape)
    throw Error("{}: '{}' is {} {}; expected F32 {}", file.path(), name, stored->dtype, ShapeString(stored->shape), ShapeString(shape));
  return stored->tensor;
}

double LargestDifference(const Tensor& a, const Tensor& b) {
  double largest = 0;
  for (int64_t i = 0; i < a.size(); i++) {
    const double difference = std::abs(static_cast<double>(a.as<float>()[i]) - static_cast<double>(b.as<float>()[i]));
    if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

void CompareLogits(Context& ctx, const Model& model, const Tensor& hidden, const Tensor& reference, ReferenceErrors& errors) {
  constexpr int64_t kRows = 64;
  for (int64_t row = 0; row < hidden.rows(); row += kRows) {
    Frame frame(ctx);
    const int64_t rows = std::min(kRows, hidden.rows() - row);
    Tensor logits = ctx.WideTemp({rows, model.config.vocab});
    Logits(ctx, model.config, model.weights, hidden.Rows(row, rows), logits);
    std::vector<float> ours(static_cast<size_t>(logits.size()));
    ops::ToHost(ctx, logits, ours.data());
    const Tensor host(ours.data(), Dtype::kF32, {rows, model.config.vocab});
    errors.logits = std::max(errors.logits.value_or(0), LargestDifference(host, reference.Rows(row, rows)));
  }
}

void CompareHidden(const HiddenStates& ours, const SafetensorsFile& file, size_t row, int64_t batch, int64_t dim, ReferenceErrors& errors) {
  for (size_t i = 0; i < ours.states.size(); i++) {
    const std::string name = fmt::format("hidden.{}", i);
    const Tensor reference = FindFloat(file, name, {batch, ours.states[i].rows(), dim});
    if (!reference) continue;
    const double error = LargestDifference(ours.states[i], reference.At(static_cast<int64_t>(row)));
    if (error >= errors.hidden.value_or(0)) errors.hidden = error, errors.worst_hidden = name;
  }
}

void CompareGradients(Model& gradients, const SafetensorsFile& file, ReferenceErrors& errors) {
  for (const Param& p : Parameters(gradients.config, gradients.weights)) {
    const std::string name = "grad." + p.name;
    const Tensor r = FindFloat(file, name, p.shape);
    if (!r) {
      errors.missing_gradients.push_back(p.name);
      continue;
    }
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < p.size(); i++) {
      const double g = static_cast<double>(p.tensor->as<float>()[i]), g_ref = static_cast<double>(r.as<float>()[i]);
      difference += (g - g_ref) * (g - g_ref), norm += g_ref * g_ref;
    }
    double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
    if (std::isnan(error)) error = INFINITY;
    if (error >= errors.gradient.value_or(0)) errors.gradient = error, errors.worst_gradient = p.name;
    errors.gradients++;
  }
}

void ForwardLoss(Context& ctx, const Model& model, const std::vector<int32_t>& tokens, std::span<const int32_t> labels, const Tensor& nll) {
  Frame frame(ctx);
  States stateless;
  Tensor hidden = ctx.Temp({static_cast<int64_t>(tokens.size()), model.config.dim});
  Forward(ctx, model.config, model.weights, StatelessBatch(tokens), stateless, hidden);
  NegativeLogLikelihood(ctx, model.config, model.weights, hidden, labels, nll);
}

// The labels of row t's prediction: token t + 1's, as Hugging Face shifts them.
std::vector<int32_t> ShiftedLabels(const SafetensorsFile& file, const std::vector<int64_t>& labels, int64_t vocab) {
  std::vector<int32_t> shifted;
  for (size_t t = 1; t < labels.size(); t++) {
    if (labels[t] != ops::kIgnoredLabel && (labels[t] < 0 || labels[t] >= vocab))
      throw Error("{}: 'labels' holds {}; expected token ids below {} or {}", file.path(), labels[t], vocab, ops::kIgnoredLabel);
    shifted.push_back(static_cast<int32_t>(labels[t]));
  }
  shifted.push_back(ops::kIgnoredLabel);
  return shifted;
}

void CompareLoss(Context& ctx, const Model& model, const SafetensorsFile& file, const Rows& inputs, const StoredTensor& stored_labels,
                 ReferenceErrors& errors) {
  const auto labels = ReadIntegers(file, stored_labels);
  if (labels.size() != inputs.size() || labels[0].size() != inputs[0].size())
    throw Error("{}: 'labels' is {}; expected the shape of 'input_ids', [{}, {}]", file.path(), ShapeString(stored_labels.shape), inputs.size(),
                inputs[0].size());
  std::vector<std::vector<int32_t>> shifted;
  int64_t count = 0;
  for (const auto& row : labels) {
    shifted.push_back(ShiftedLabels(file, row, model.config.vocab));
    count += std::count_if(shifted.back().begin(), shifted.back().end(), [](int32_t label) { return label != ops::kIgnoredLabel; });
  }
  if (count == 0) return;
  // A device that doesn't train has the loss alone.
  const bool with_gradients = ctx.device->LinearBackward &&
                              std::any_of(file.tensors().begin(), file.tensors().end(), [](const StoredTensor& t) { return t.name.starts_with("grad."); });
  Model gradients = with_gradients ? AllocateModel(model.config, Dtype::kF32) : Model{.config = model.config, .weights = EmptyWeights(model.config)};
  double sum = 0;
  for (size_t b = 0; b < inputs.size(); b++) {
    Frame frame(ctx);
    Tensor nll = ctx.WideTemp({static_cast<int64_t>(inputs[b].size())});
    if (with_gradients)
      ForwardBackward(ctx, model, inputs[b], shifted[b], 1.0 / static_cast<double>(count), nll, gradients.weights);
    else
      ForwardLoss(ctx, model, inputs[b], shifted[b], nll);
    std::vector<float> numbers(static_cast<size_t>(nll.size()));
    ops::ToHost(ctx, nll, numbers.data());
    for (float x : numbers) sum += static_cast<double>(x);
  }
  errors.loss = sum / static_cast<double>(count);
  if (with_gradients) CompareGradients(gradients, file, errors);
}

}  // namespace

void ForwardBackward(Context& ctx, const Model& model, const std::vector<int32_t>& tokens, std::span<const int32_t> labels, double scale, const Tensor& nll,
                     Weights& gradients) {
  Frame frame(ctx);
  const Batch batch = StatelessBatch(tokens);
  States stateless;
  Saved saved;
  Tensor hidden = ctx.Temp({batch.rows(), model.config.dim}), dhidden = ctx.Temp({batch.rows(), model.config.dim});
  Forward(ctx, model.config, model.weights, batch, stateless, hidden, &saved);
  LossBackward(ctx, model.config, model.weights, hidden, labels, scale, nll, dhidden, gradients);
  Backward(ctx, model.config, model.weights, batch, saved, dhidden, gradients);
}

void MeasureComparison(Context& ctx, const Model& model, const std::vector<int32_t>& tokens) {
  Frame frame(ctx);
  const auto rows = std::ssize(tokens);
  const std::vector<int32_t> labels(tokens.size(), 0);
  const Tensor nll = ctx.WideTemp({rows});
  ctx.Temp({rows, model.config.dim});  // HiddenStates::last
  Weights gradients = EmptyWeights(model.config);
  if (ctx.accelerator)
    ForwardLoss(ctx, model, tokens, labels, nll);
  else
    ForwardBackward(ctx, model, tokens, labels, 1, nll, gradients);
}

Rows ReadTokenRows(const SafetensorsFile& file, std::string_view name, int64_t vocab) {
  const StoredTensor* stored = file.Find(name);
  if (!stored) throw Error("{}: has no tensor '{}'; expected token ids [B, T] (I64) under that name", file.path(), name);
  const auto rows = Tokens(file, name, ReadIntegers(file, *stored), vocab);
  if (rows.empty() || rows[0].empty()) throw Error("{}: '{}' is {}; expected at least one token", file.path(), name, ShapeString(stored->shape));
  return rows;
}

ReferenceErrors CompareWithReference(Context& ctx, const Model& model, const SafetensorsFile& file, std::optional<double> reference_loss) {
  const Config& c = model.config;
  const Rows inputs = ReadTokenRows(file, "input_ids", c.vocab);
  const int64_t batch = static_cast<int64_t>(inputs.size()), length = static_cast<int64_t>(inputs[0].size());
  const Tensor logits = FindFloat(file, "logits", {batch, length, c.vocab});
  ReferenceErrors errors{.reference_loss = reference_loss};
  for (size_t b = 0; b < inputs.size(); b++) {
    Frame frame(ctx);
    const HiddenStates ours = ForwardHiddenStates(ctx, model, inputs[b]);
    if (logits) CompareLogits(ctx, model, ours.last, logits.At(static_cast<int64_t>(b)), errors);
    CompareHidden(ours, file, b, batch, c.dim, errors);
  }
  if (const StoredTensor* labels = file.Find("labels")) CompareLoss(ctx, model, file, inputs, *labels, errors);
  return errors;
}

std::vector<GreedyReference> ReadGreedyReferences(const SafetensorsFile& file, int64_t vocab) {
  std::vector<GreedyReference> out;
  // The prompt of an unpadded continuation is as much of input_ids' first row as it repeats.
  for (const char* name : {"generate.greedy", "unpadded.generate.0"}) {
    if (!file.Find(name)) continue;
    const Rows inputs = ReadTokenRows(file, "input_ids", vocab), text = ReadTokenRows(file, name, vocab);
    const auto [end, input_end] = std::mismatch(text[0].begin(), text[0].end(), inputs[0].begin(), inputs[0].end());
    if (end == text[0].begin()) throw Error("{}: '{}' doesn't start with tokens of 'input_ids'; expected its prompt there", file.path(), name);
    out.push_back({name, {text[0].begin(), end}, {end, text[0].end()}});
  }
  // A left-padded one is known by its mask.
  const StoredTensor* mask = file.Find("padded.mask");
  if (mask && file.Find("padded.generate")) {
    const auto keep = ReadIntegers(file, *mask);
    const Rows text = ReadTokenRows(file, "padded.generate", vocab);
    if (keep.size() != text.size() || keep[0].size() > text[0].size())
      throw Error("{}: 'padded.mask' is {}; expected a row of prompt columns for each of the {} rows of 'padded.generate'", file.path(),
                  ShapeString(mask->shape), text.size());
    for (size_t b = 0; b < text.size(); b++) {
      const auto padding = std::count(keep[b].begin(), keep[b].end(), 0);
      const auto prompt_end = text[b].begin() + static_cast<int64_t>(keep[b].size());
      if (text[b].begin() + padding != prompt_end)
        out.push_back({fmt::format("padded.generate[{}]", b), {text[b].begin() + padding, prompt_end}, {prompt_end, text[b].end()}});
    }
  }
  return out;
}

}  // namespace bamba
