#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <mutex>
#include <span>

#include "core/cuda_check.cuh"
#include "gemm/gpu_product.h"

namespace nibble::cuda {

namespace {

void check_blas(cublasStatus_t status, std::string_view what) {
    if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
        fail("{}: cuBLASLt says {}", what, cublasLtGetStatusName(status));
}

cublasLtHandle_t handle() {
    static const cublasLtHandle_t of_process = [] {
        cublasLtHandle_t made = nullptr;
        check_blas(cublasLtCreate(&made), "start of cuBLASLt");
        return made;
    }();
    return of_process;
}

cudaDataType_t data_type(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

template <typename T>
void set(cublasLtMatmulDescOpaque_t& desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    check_blas(cublasLtMatmulDescSetAttribute(&desc, attribute, &value, sizeof(value)),
               "a product's description");
}
template <typename T>
void set(cublasLtMatmulPreferenceOpaque_t& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         T value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
               "a product's preferences");
}

cublasLtMatrixLayoutOpaque_t layout(DType dtype, int64_t rows, int64_t cols, const StoredMatrix& how) {
    if (how.is_transposed) std::swap(rows, cols);
    cublasLtMatrixLayoutOpaque_t made;
    check_blas(cublasLtMatrixLayoutInit(&made, data_type(dtype), static_cast<uint64_t>(cols),
                                        static_cast<uint64_t>(rows), how.stride),
               "a matrix's layout");
    return made;
}

}  // namespace

uint32_t address_alignment(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return address % 256 == 0 ? 256 : 1u << std::countr_zero(address);
}

// The library's matrices have contiguous columns: it is given Cᵀ[n, m] = B · Aᵀ, and reads a matrix of ours
// that is stored [rows, k] as one of [k, rows].
struct GpuProduct::Impl {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;

    // Makes `algorithm` the fastest of those found that sum in one sequence, if the first does.
    void choose_fastest(const GpuProduct& product, const GpuProductShape& s,
                        std::span<const cublasLtMatmulHeuristicResult_t> found);
};

namespace {

bool sums_in_sequence(const cublasLtMatmulAlgo_t& algorithm) {
    int32_t parts = 0;
    size_t written = 0;
    check_blas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                                    sizeof(parts), &written),
               "an algorithm's parts");
    return parts == 1;
}

// Numbers of about one: on zeros products are faster than on data.
__global__ void fill_with_numbers(Bf16* to, int64_t count) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * blockDim.x) {
        const uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
        to[i] = bf16_encode(static_cast<float>(static_cast<int32_t>(bits ^ bits >> 15)) * 0x1p-31f);
    }
}

// Memory of the GPU for a trial, if there is so much.
class TrialMemory {
  public:
    explicit TrialMemory(int64_t bytes) {
        if (cudaMalloc(&data_, static_cast<size_t>(bytes)) == cudaSuccess) return;
        cudaGetLastError();  // or the next launch would report it
        data_ = nullptr;
    }
    ~TrialMemory() { cudaFree(data_); }
    TrialMemory(const TrialMemory&) = delete;
    TrialMemory& operator=(const TrialMemory&) = delete;
    std::byte* data() const { return static_cast<std::byte*>(data_); }

  private:
    void* data_ = nullptr;
};

// The milliseconds of work that is queued by `run`.
template <typename Run>
float time_of(Run&& run) {
    cudaEvent_t begin = nullptr, end = nullptr;
    check(cudaEventCreate(&begin), "an event");
    check(cudaEventCreate(&end), "an event");
    check(cudaEventRecord(begin), "an event");
    run();
    check(cudaEventRecord(end), "an event");
    check(cudaEventSynchronize(end), "a trial of a matrix product");
    float time = 0;
    check(cudaEventElapsedTime(&time, begin, end), "an event");
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return time;
}

}  // namespace

void GpuProduct::Impl::choose_fastest(const GpuProduct& product, const GpuProductShape& s,
                                      std::span<const cublasLtMatmulHeuristicResult_t> found) {
    constexpr int64_t kLarge = int64_t{1} << 34;  // products that take the GPU 50 us
    if (s.operands != DType::bf16 || s.m * s.n * s.k < kLarge || !sums_in_sequence(found.front().algo))
        return;
    const auto bytes_of = [](const StoredMatrix& how, int64_t rows, int64_t k, DType dtype) {
        return divide_up<int64_t>(how.stride * (how.is_transposed ? k : rows), 128) * 128 *
               static_cast<int64_t>(size_of(dtype));
    };
    const int64_t a_bytes = bytes_of(s.a, s.m, s.k, s.operands),
                  b_bytes = bytes_of(s.b, s.n, s.k, s.operands), c_bytes = bytes_of(s.c, s.m, s.n, s.result);
    const TrialMemory memory(a_bytes + b_bytes + c_bytes + kWorkspace + 256);
    if (memory.data() == nullptr) return;
    std::byte *const a = memory.data(), *const b = a + a_bytes, *const c = b + b_bytes,
                     *const rest = c + c_bytes;
    const Tensor workspace{rest, DType::u8, Device::cuda, {kWorkspace}};
    const float factors[2] = {1.0f, 0.0f};
    const float* alpha = factors;
    if (s.factors_on_device) {
        alpha = reinterpret_cast<float*>(rest + kWorkspace);
        check(cudaMemcpy(rest + kWorkspace, factors, sizeof(factors), cudaMemcpyHostToDevice),
              "factors of a trial");
    }
    Arena none(0);
    Context context{none, Device::cuda};
    launch(context, fill_with_numbers, 1024, 256, 0, reinterpret_cast<Bf16*>(a), (a_bytes + b_bytes) / 2);

    constexpr int kRounds = 5;  // the first is to warm up
    std::vector<float> times(found.size(), std::numeric_limits<float>::max());
    for (int round = 0; round < kRounds; ++round) {
        for (size_t i = 0; i < found.size(); ++i) {
            if (!sums_in_sequence(found[i].algo)) continue;
            algorithm = found[i].algo;
            const float time = time_of([&] { product.run(context, alpha, a, b, alpha + 1, c, workspace); });
            if (round > 0) times[i] = std::min(times[i], time);
        }
    }
    // Less than 3 % is noise.
    const auto fastest = static_cast<size_t>(std::ranges::min_element(times) - times.begin());
    algorithm = found[times[fastest] < 0.97f * times[0] ? fastest : 0].algo;
}

GpuProduct::GpuProduct(const GpuProductShape& s, bool measure) : impl_(new Impl) {
    Impl& impl = *impl_;
    check_blas(cublasLtMatmulDescInit(&impl.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product's description");
    set(impl.desc, CUBLASLT_MATMUL_DESC_TRANSA, s.b.is_transposed ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(impl.desc, CUBLASLT_MATMUL_DESC_TRANSB, s.a.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(impl.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE,
        s.factors_on_device ? CUBLASLT_POINTER_MODE_DEVICE : CUBLASLT_POINTER_MODE_HOST);
    impl.a = layout(s.operands, s.m, s.k, s.a);
    impl.b = layout(s.operands, s.n, s.k, s.b);
    impl.c = layout(s.result, s.m, s.n, s.c);

    cublasLtMatmulPreferenceOpaque_t preference;
    check_blas(cublasLtMatmulPreferenceInit(&preference), "a product's preferences");
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
    // Parts of a sum are added in FP32, in a fixed order.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.b.alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.a.alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.c.alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.c.alignment);
    std::array<cublasLtMatmulHeuristicResult_t, 8> found{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle(), &impl.desc, &impl.b, &impl.a, &impl.c, &impl.c, &preference,
                                       static_cast<int>(found.size()), found.data(), &count);
    require(status == CUBLAS_STATUS_SUCCESS && count > 0,
            "cuBLASLt cannot multiply [{}, {}] by [{}, {}] ({} operands, {} result): {}", s.m, s.k, s.k, s.n,
            name_of(s.operands), name_of(s.result), cublasLtGetStatusName(status));
    impl.algorithm = found.front().algo;
    if (measure) impl.choose_fastest(*this, s, std::span(found).first(static_cast<size_t>(count)));
}
GpuProduct::~GpuProduct() = default;

const GpuProduct& GpuProduct::get(const GpuProductShape& shape, bool measure) {
    static std::mutex mutex;
    static std::map<GpuProductShape, std::unique_ptr<GpuProduct>> products;
    const std::lock_guard lock(mutex);
    auto& product = products[shape];
    if (!product) product.reset(new GpuProduct(shape, measure));
    return *product;
}

void GpuProduct::run(const Context& context, const float* alpha, const void* a, const void* b,
                     const float* beta, void* c, const Tensor& workspace) const {
    check_blas(
        cublasLtMatmul(handle(), &impl_->desc, alpha, b, &impl_->b, a, &impl_->a, beta, c, &impl_->c, c,
                       &impl_->c, &impl_->algorithm, workspace.data, workspace.bytes(), context.stream),
        "a matrix product");
}

std::string gpu_product_description() {
    const size_t version = cublasLtGetVersion();
    return fmt::format("cublaslt {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace nibble::cuda
