#include "ops/cuda/tensor_map.cuh"

namespace bamba::cuda {
namespace {

// The driver's function, null where it has none.
using Encode = decltype(&cuTensorMapEncodeTiled);
Encode Encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) != cudaSuccess) return Encode{};
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : Encode{};
  }();
  return encode;
}

}  // namespace

bool HasTensorMaps(const State& state) { return state.hopper() && Encoder() != nullptr; }

CUtensorMap TensorMap(const void* data, std::initializer_list<MapDimension> dimensions, int sector) {
  constexpr size_t kMost = 5;
  CHECK(dimensions.size() <= kMost && (sector == 128 || sector == 256));
  cuuint64_t sizes[kMost], pitches[kMost];  // bytes, without the first
  cuuint32_t boxes[kMost], steps[kMost];
  cuuint32_t count = 0;
  for (const MapDimension& d : dimensions) {
    sizes[count] = static_cast<cuuint64_t>(d.size), boxes[count] = static_cast<cuuint32_t>(d.box), steps[count] = 1;
    if (count > 0) pitches[count - 1] = static_cast<cuuint64_t>(d.stride) * sizeof(bf16);
    count++;
  }
  CUtensorMap map;
  CHECK(Encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, count, const_cast<void*>(data), sizes, pitches, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, sector == 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS);
  return map;
}

}  // namespace bamba::cuda
