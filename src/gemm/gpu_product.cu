#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

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
};

GpuProduct::GpuProduct(const GpuProductShape& s) : impl_(new Impl) {
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
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle(), &impl.desc, &impl.b, &impl.a, &impl.c, &impl.c, &preference, 1, &found, &count);
    require(status == CUBLAS_STATUS_SUCCESS && count == 1,
            "cuBLASLt cannot multiply [{}, {}] by [{}, {}] ({} operands, {} result): {}", s.m, s.k, s.k, s.n,
            name_of(s.operands), name_of(s.result), cublasLtGetStatusName(status));
    impl.algorithm = found.algo;
}
GpuProduct::~GpuProduct() = default;

const GpuProduct& GpuProduct::get(const GpuProductShape& shape) {
    static std::mutex mutex;
    static std::map<GpuProductShape, std::unique_ptr<GpuProduct>> products;
    const std::lock_guard lock(mutex);
    auto& product = products[shape];
    if (!product) product.reset(new GpuProduct(shape));
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
