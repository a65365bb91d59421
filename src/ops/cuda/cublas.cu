#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <string>

#include "base/shared_library.h"
#include "ops/cuda/gemm.cuh"

namespace bamba::cuda {
namespace {

constexpr size_t kWorkspace = size_t{64} << 20;
constexpr int kProposals = 8;

// The library's functions that are used, by name.
#define BAMBA_CUBLAS_FUNCTIONS(X) \
  X(Create)                       \
  X(Matmul)                       \
  X(MatmulDescCreate)             \
  X(MatmulDescSetAttribute)       \
  X(MatmulDescDestroy)            \
  X(MatrixLayoutCreate)           \
  X(MatrixLayoutDestroy)          \
  X(MatmulPreferenceCreate)       \
  X(MatmulPreferenceSetAttribute) \
  X(MatmulPreferenceDestroy)      \
  X(MatmulAlgoGetHeuristic)

// Opened when it is first asked for: the file that BAMBA_CUBLASLT names, else where the loader or the toolkit has it; BAMBA_CUBLASLT=none goes without.
struct Library {
#define BAMBA_CUBLAS_MEMBER(name) decltype(&cublasLt##name) name = nullptr;
  BAMBA_CUBLAS_FUNCTIONS(BAMBA_CUBLAS_MEMBER)
#undef BAMBA_CUBLAS_MEMBER
  cublasLtHandle_t handle = nullptr;

  bool Open() {
    const char* const forced = std::getenv("BAMBA_CUBLASLT");
    if (forced && std::string(forced) == "none") return false;
    void* file = nullptr;
    if (forced && *forced) {
      file = OpenSharedLibrary(forced, nullptr);
    } else {
      for (const char* folder : {"", "/usr/local/cuda/lib64/"})
        for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
          if (!file) file = OpenSharedLibrary(std::string(folder) + name, nullptr);
    }
    if (!file) return false;
#define BAMBA_CUBLAS_FIND(name)                                                   \
  name = reinterpret_cast<decltype(name)>(FindSymbol(file, "cublasLt" #name));    \
  if (!name) return false;
    BAMBA_CUBLAS_FUNCTIONS(BAMBA_CUBLAS_FIND)
#undef BAMBA_CUBLAS_FIND
    return Create(&handle) == CUBLAS_STATUS_SUCCESS;
  }
};

Library* TheLibrary() {
  static Library library;
  static const bool open = library.Open();
  return open ? &library : nullptr;
}

// What decides on the way a product is computed.
struct Key {
  int64_t rows, out, in, x_stride, y_stride, x_alignment, w_alignment, y_alignment;
  bool wide;
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  std::array<cublasLtMatmulHeuristicResult_t, kProposals> proposals;
  int count = 0, choice = 0;
};

// For a product of up to `rows` rows, ascending, the proposal that was fastest: what `bench/cuda_linear --sweep` printed on an H200 with cuBLAS 13, where it was
// 1 % or more ahead of the first. It measures at the clock that the power limit allows in the long run, at which a model meets the products; those of 8,192 rows
// were measured in bursts. Where nothing fits, the first one. BAMBA_CUBLASLT_CHOICE=n takes the n-th for all, for measurements.
struct Measured {
  int64_t rows, out, in;
  int choice;
};
constexpr Measured kMeasured[] = {
    {96, 16768, 4096, 1}, {512, 16768, 4096, 0}, {4096, 16768, 4096, 1},                                               // in_proj
    {192, 4096, 8192, 1},                                                                                              // out_proj
    {96, 28672, 4096, 1}, {192, 28672, 4096, 0}, {256, 28672, 4096, 1}, {512, 28672, 4096, 0},                         // gate and up
    {2048, 28672, 4096, 4}, {4096, 28672, 4096, 5}, {8192, 28672, 4096, 7},
    {192, 4096, 14336, 3}, {256, 4096, 14336, 1}, {512, 4096, 14336, 0}, {4096, 4096, 14336, 1},                       // down
    {2048, 6144, 4096, 0}, {4096, 6144, 4096, 4}, {8192, 6144, 4096, 3},                                               // q, k, v
    {192, 4096, 4096, 1}, {512, 4096, 4096, 0}, {2048, 4096, 4096, 1},                                                 // o
    {96, 128256, 4096, 3}, {256, 128256, 4096, 1}, {512, 128256, 4096, 5},                                             // logits
};

int64_t Alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  int64_t alignment = 256;
  while (address % static_cast<uintptr_t>(alignment) != 0) alignment /= 2;
  return alignment;
}

// The library stores columns one after the other: to it yᵀ [out, rows] = Wᵀ's transpose times xᵀ.
Plan MakePlan(Library& lt, const Key& key) {
  Plan plan;
  const auto ok = [](cublasStatus_t status) { return status == CUBLAS_STATUS_SUCCESS; };
  const auto columns = [](int64_t n) { return static_cast<uint64_t>(n); };
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulPreference_t preference = nullptr;
  bool fine = ok(lt.MatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
              ok(lt.MatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed))) &&
              ok(lt.MatrixLayoutCreate(&plan.w, CUDA_R_16BF, columns(key.in), columns(key.out), key.in)) &&
              ok(lt.MatrixLayoutCreate(&plan.x, CUDA_R_16BF, columns(key.in), columns(key.rows), key.x_stride)) &&
              ok(lt.MatrixLayoutCreate(&plan.y, key.wide ? CUDA_R_32F : CUDA_R_16BF, columns(key.out), columns(key.rows), key.y_stride)) &&
              ok(lt.MatmulPreferenceCreate(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    fine = fine && ok(lt.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.w_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.x_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.y_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.y_alignment));
  if (!fine || !ok(lt.MatmulAlgoGetHeuristic(lt.handle, plan.product, plan.w, plan.x, plan.y, plan.y, preference, kProposals, plan.proposals.data(),
                                             &plan.count)))
    plan.count = 0;
  if (preference) lt.MatmulPreferenceDestroy(preference);
  // Those that can't run come last, if at all.
  plan.count = static_cast<int>(std::stable_partition(plan.proposals.begin(), plan.proposals.begin() + plan.count,
                                                      [&](const auto& one) { return ok(one.state) && one.workspaceSize <= kWorkspace; }) -
                                plan.proposals.begin());
  for (const Measured& one : kMeasured) {
    if (one.out != key.out || one.in != key.in || one.rows < key.rows) continue;
    plan.choice = one.choice;
    break;
  }
  return plan;
}

std::map<Key, Plan>& Plans() {
  static std::map<Key, Plan> plans;
  return plans;
}

}  // namespace

void OpenCublas() { TheLibrary(); }

bool CublasProduct(State& state, const Product& p) {
  Library* const lt = TheLibrary();
  if (!lt || p.bias) return false;
  const Key key{p.rows, p.out, p.in, p.x_stride, p.y_stride, Alignment(p.x), Alignment(p.w), Alignment(p.y), p.wide};
  std::map<Key, Plan>& plans = Plans();
  auto found = plans.find(key);
  if (found == plans.end()) {
    // Prompts come in all lengths: what they left is forgotten when there is much of it.
    if (plans.size() >= 4096) {
      for (auto& [old, plan] : plans) {
        if (plan.product) lt->MatmulDescDestroy(plan.product);
        for (cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y})
          if (layout) lt->MatrixLayoutDestroy(layout);
      }
      plans.clear();
    }
    found = plans.emplace(key, MakePlan(*lt, key)).first;
  }
  const Plan& plan = found->second;
  if (plan.count == 0) return false;
  const char* const forced = std::getenv("BAMBA_CUBLASLT_CHOICE");
  const int choice = std::min(forced && *forced ? std::max(std::atoi(forced), 0) : plan.choice, plan.count - 1);
  const cublasLtMatmulHeuristicResult_t& proposal = plan.proposals[static_cast<size_t>(choice)];
  const float one = 1, zero = 0;
  return lt->Matmul(lt->handle, plan.product, &one, p.w, plan.w, p.x, plan.x, &zero, p.y, plan.y, p.y, plan.y, &proposal.algo, state.scratch(), kWorkspace,
                    state.stream()) == CUBLAS_STATUS_SUCCESS;
}

}  // namespace bamba::cuda
