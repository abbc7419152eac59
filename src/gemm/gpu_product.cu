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

cudaDataType_t data_type(DType dtype) {
    switch (dtype) {
        case DType::e4m3:
            return CUDA_R_8F_E4M3;
        case DType::e5m2:
            return CUDA_R_8F_E5M2;
        case DType::bf16:
            return CUDA_R_16BF;
        default:
            return CUDA_R_32F;
    }
}

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

bool has_fp8_tensor_cores() {
    static const bool has = [] {
        int device = 0, major = 0, minor = 0;
        if (cudaGetDevice(&device) != cudaSuccess) return false;
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "kind of the GPU");
        check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "kind of the GPU");
        return major * 10 + minor >= 89;
    }();
    return has;
}

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
    bool is_found = false;    // the library has an algorithm
    bool has_scales = false;  // of the operands, or of their rows

    static void set_scales(cublasLtMatmulDescOpaque_t& desc, const Scales& scales) {
        set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.b);
        set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.a);
    }

    // Makes `algorithm` the fastest of those found that sum in one sequence and give the first one's bits, if
    // the first does.
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

__device__ uint32_t mixed_bits(int64_t i) {
    const uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
    return bits ^ bits >> 15;
}
// Numbers of about one: on zeros products are faster than on data.
__global__ void fill_with_numbers(Bf16* to, int64_t count) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * blockDim.x) {
        to[i] = bf16_encode(static_cast<float>(static_cast<int32_t>(mixed_bits(i))) * 0x1p-31f);
    }
}
// FP8 codes below 2, of all smaller magnitudes.
__global__ void fill_with_codes(uint32_t* to, int64_t words) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words;
         i += int64_t{gridDim.x} * blockDim.x) {
        to[i] = mixed_bits(i) & 0xbfbfbfbfu;
    }
}

__global__ void find_difference(const uint32_t* a, const uint32_t* b, int64_t words, uint32_t* found) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words;
         i += int64_t{gridDim.x} * blockDim.x) {
        if (a[i] != b[i]) *found = 1;
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
    if (s.of_a == DType::f32 || s.m * s.n * s.k < kLarge || !sums_in_sequence(found.front().algo)) return;
    // A trial has no scales of rows; for products with them the library proposes one algorithm.
    if (s.factors == FactorsFrom::row_scales) return;
    const auto bytes_of = [](const StoredMatrix& how, int64_t rows, int64_t k, DType dtype) {
        return divide_up<int64_t>(how.stride * (how.is_transposed ? k : rows), 256) * 256 *
               static_cast<int64_t>(size_of(dtype));
    };
    const int64_t a_bytes = bytes_of(s.a, s.m, s.k, s.of_a), b_bytes = bytes_of(s.b, s.n, s.k, s.of_b),
                  c_bytes = bytes_of(s.c, s.m, s.n, s.result);
    const TrialMemory memory(a_bytes + b_bytes + 2 * c_bytes + kWorkspace + 256);
    if (memory.data() == nullptr) return;
    std::byte *const a = memory.data(), *const b = a + a_bytes, *const c_of_first = b + b_bytes,
                     *const c = c_of_first + c_bytes, *const rest = c + c_bytes;
    const Tensor workspace{rest, DType::u8, Device::cuda, {kWorkspace}};
    auto* const on_gpu = reinterpret_cast<float*>(rest + kWorkspace);
    auto* const difference = reinterpret_cast<uint32_t*>(on_gpu + 2);
    const float factors[2] = {1.0f, 0.0f};
    check(cudaMemcpy(on_gpu, factors, sizeof(factors), cudaMemcpyHostToDevice), "factors of a trial");
    const float* const alpha = s.factors == FactorsFrom::gpu ? on_gpu : factors;
    const float* const beta = alpha + 1;
    const Scales scales = {on_gpu, on_gpu};
    Arena none(0);
    Context context{none, Device::cuda};
    if (s.is_fp8()) {
        launch(context, fill_with_codes, 1024, 256, 0, reinterpret_cast<uint32_t*>(a),
               (a_bytes + b_bytes) / 4);
    } else {
        launch(context, fill_with_numbers, 1024, 256, 0, reinterpret_cast<Bf16*>(a), (a_bytes + b_bytes) / 2);
    }

    // The first round is to warm up, and to see whose bits differ.
    std::vector<bool> competes(found.size());
    const int64_t words = s.c.stride * s.m * static_cast<int64_t>(size_of(s.result)) / 4;
    for (size_t i = 0; i < found.size(); ++i) {
        if (!sums_in_sequence(found[i].algo)) continue;
        algorithm = found[i].algo;
        product.run(context, alpha, a, b, beta, i == 0 ? c_of_first : c, workspace, scales);
        uint32_t differs = 0;
        if (i > 0) {
            check(cudaMemset(difference, 0, sizeof(differs)), "clearing memory of the GPU");
            launch(context, find_difference, 1024, 256, 0, reinterpret_cast<uint32_t*>(c_of_first),
                   reinterpret_cast<uint32_t*>(c), words, difference);
            check(cudaMemcpy(&differs, difference, sizeof(differs), cudaMemcpyDeviceToHost),
                  "a trial of a matrix product");
        }
        competes[i] = differs == 0;
    }
    constexpr int kRounds = 4;
    std::vector<float> times(found.size(), std::numeric_limits<float>::max());
    for (int round = 0; round < kRounds; ++round) {
        for (size_t i = 0; i < found.size(); ++i) {
            if (!competes[i]) continue;
            algorithm = found[i].algo;
            times[i] = std::min(
                times[i], time_of([&] { product.run(context, alpha, a, b, beta, c, workspace, scales); }));
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
    impl.has_scales = s.factors == FactorsFrom::scales || s.factors == FactorsFrom::row_scales;
    if (s.factors == FactorsFrom::row_scales) {
        const int32_t of_rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
        set(impl.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_rows);
        set(impl.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_rows);
    }
    set(impl.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE,
        s.factors == FactorsFrom::gpu ? CUBLASLT_POINTER_MODE_DEVICE : CUBLASLT_POINTER_MODE_HOST);
    if (s.is_fp8()) set(impl.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{s.fast_sums});
    // The search for algorithms wants to know that there will be scales; run() gives them.
    const auto* const somewhere = reinterpret_cast<const float*>(uintptr_t{256});
    if (impl.has_scales) impl.set_scales(impl.desc, {somewhere, somewhere});
    impl.a = layout(s.of_a, s.m, s.k, s.a);
    impl.b = layout(s.of_b, s.n, s.k, s.b);
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
    impl.is_found = status == CUBLAS_STATUS_SUCCESS && count > 0;
    if (!impl.is_found) return;
    impl.algorithm = found.front().algo;
    if (measure) impl.choose_fastest(*this, s, std::span(found).first(static_cast<size_t>(count)));
}
GpuProduct::~GpuProduct() = default;

const GpuProduct* GpuProduct::find(const GpuProductShape& shape, bool measure) {
    static std::mutex mutex;
    static std::map<GpuProductShape, std::unique_ptr<GpuProduct>> products;
    const std::lock_guard lock(mutex);
    auto& product = products[shape];
    if (!product) product.reset(new GpuProduct(shape, measure));
    return product->impl_->is_found ? product.get() : nullptr;
}

const GpuProduct& GpuProduct::get(const GpuProductShape& shape, bool measure) {
    const GpuProduct* const product = find(shape, measure);
    require(product != nullptr,
            "cuBLASLt cannot multiply [{}, {}] by [{}, {}] ({} and {} operands, {} result)", shape.m, shape.k,
            shape.k, shape.n, name_of(shape.of_a), name_of(shape.of_b), name_of(shape.result));
    return *product;
}

void GpuProduct::run(const Context& context, const float* alpha, const void* a, const void* b,
                     const float* beta, void* c, const Tensor& workspace, const Scales& scales) const {
    cublasLtMatmulDescOpaque_t desc = impl_->desc;
    if (impl_->has_scales) Impl::set_scales(desc, scales);
    check_blas(
        cublasLtMatmul(handle(), &desc, alpha, b, &impl_->b, a, &impl_->a, beta, c, &impl_->c, c, &impl_->c,
                       &impl_->algorithm, workspace.data, workspace.bytes(), context.stream),
        "a matrix product");
}

std::string gpu_product_description() {
    const size_t version = cublasLtGetVersion();
    return fmt::format("cublaslt {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace nibble::cuda
