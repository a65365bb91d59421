#include "engine/device_model.h"

#include <vector>

#include "base/buffer.h"
#include "model/params.h"
#include "model/random_weights.h"

namespace bamba {
namespace {

Dtype DeviceDtype(const Param& p) { return p.role == Role::kMatrix || p.role == Role::kEmbedding ? p.tensor->dtype() : Dtype::kF32; }

size_t PlaceBytes(const Param& p) {
  const size_t bytes = static_cast<size_t>(p.size()) * SizeOf(DeviceDtype(p));
  return (bytes + Workspace::kAlign - 1) / Workspace::kAlign * Workspace::kAlign;
}

// The host's model with every parameter at its place on the device, where nothing is yet.
Model Placed(Accelerator& accelerator, const Model& host) {
  Model model{.config = host.config, .weights = host.weights};
  auto memory = std::make_shared<Buffer>(static_cast<size_t>(DeviceWeightBytes(host)), &accelerator);
  char* at = memory->data();
  for (const Param& p : Parameters(model.config, model.weights)) {
    const size_t bytes = PlaceBytes(p);
    *p.tensor = Tensor(at, DeviceDtype(p), p.shape.data(), static_cast<int>(p.shape.size()));
    at += bytes;
  }
  TieHead(model.config, model.weights);
  model.storage.push_back(std::move(memory));
  return model;
}

}  // namespace

int64_t DeviceWeightBytes(const Model& model) {
  Weights weights = model.weights;
  int64_t bytes = 0;
  for (const Param& p : Parameters(model.config, weights)) bytes += static_cast<int64_t>(PlaceBytes(p));
  return bytes;
}

Model ModelOn(Accelerator& accelerator, const Model& host, const std::function<void(int64_t)>& progress) {
  Model model = Placed(accelerator, host);
  Weights weights = host.weights;
  const std::vector<Param> from = Parameters(host.config, weights), to = Parameters(model.config, model.weights);
  std::vector<Accelerator::Transfer> transfers;
  std::vector<std::vector<float>> widened;
  for (size_t i = 0; i < from.size(); i++) {
    const Tensor &source = *from[i].tensor, &target = *to[i].tensor;
    CHECK_MSG(source.contiguous(), "{} {}", from[i].name, source.ShapeString());
    const void* data = source.data();
    if (source.dtype() != target.dtype()) {
      std::vector<float>& numbers = widened.emplace_back(static_cast<size_t>(source.size()));
      Convert(source.data(), source.dtype(), numbers.data(), Dtype::kF32, numbers.size());
      data = numbers.data();
    }
    transfers.push_back({target.data(), data, target.bytes()});
  }
  accelerator.UploadAll(transfers, progress);
  return model;
}

Model ModelFor(const Execution& execution, const Model& host, const std::function<void(int64_t)>& progress) {
  return execution.accelerator ? ModelOn(*execution.accelerator, host, progress) : host;
}

Model RandomModelOn(Accelerator& accelerator, const Model& host, uint64_t seed) {
  Model model = Placed(accelerator, host);
  FillRandom(model, seed, [&](const Tensor& tensor, uint64_t each, float low, float high) {
    accelerator.FillRandom(tensor, each, low, high);
    return true;
  });
  return model;
}

}  // namespace bamba
