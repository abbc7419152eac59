// The simulated GPU's form of src/gemm/gpu_product.cu: products by loops. Sums are FP32, of parts of K first:
// of 32 terms in FP8, of 64 otherwise, so that the two differ in their bits, as they do on a GPU.
#include "gemm/gpu_product.h"

#include <cuda_runtime.h>

#include <vector>

#include "numerics/bf16.h"
#include "numerics/elements.h"

namespace simulated_gpu {
bool is_ada();
}  // namespace simulated_gpu

namespace nibble::cuda {

struct GpuProduct::Impl {
    GpuProductShape shape;
};

namespace {

float number_at(DType dtype, const void* data, int64_t i) {
    switch (dtype) {
        case DType::bf16:
            return bf16_decode(static_cast<const Bf16*>(data)[i]);
        case DType::e4m3:
            return element_decode(Element::e4m3, static_cast<const uint8_t*>(data)[i]);
        case DType::e5m2:
            return element_decode(Element::e5m2, static_cast<const uint8_t*>(data)[i]);
        default:
            return static_cast<const float*>(data)[i];
    }
}

// [k, rows].
std::vector<float> columns_of(DType dtype, const void* data, const StoredMatrix& how, int64_t rows,
                              int64_t k) {
    std::vector<float> result(static_cast<size_t>(rows * k));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < k; ++i)
            result[static_cast<size_t>(i * rows + r)] =
                number_at(dtype, data, how.is_transposed ? i * how.stride + r : r * how.stride + i);
    return result;
}

}  // namespace

GpuProduct::GpuProduct(const GpuProductShape& shape, bool) : impl_(new Impl{shape}) {}
GpuProduct::~GpuProduct() = default;

// The library has no scales of rows on Ada.
const GpuProduct* GpuProduct::find(const GpuProductShape& shape, bool) {
    return simulated_gpu::is_ada() && shape.factors == FactorsFrom::row_scales ? nullptr : &get(shape);
}

const GpuProduct& GpuProduct::get(const GpuProductShape& shape, bool measure) {
    static thread_local std::unique_ptr<GpuProduct> last;
    last.reset(new GpuProduct(shape, measure));
    return *last;
}

namespace {

void multiply(const GpuProductShape& s, float alpha, const void* a, const void* b, float beta, void* c,
              const GpuProduct::Scales& scales) {
    const std::vector<float> of_a = columns_of(s.of_a, a, s.a, s.m, s.k),
                             of_b = columns_of(s.of_b, b, s.b, s.n, s.k);
    const int64_t part_of_k = s.is_fp8() ? 32 : 64;
    std::vector<float> sums(static_cast<size_t>(s.n)), part(sums.size());
    for (int64_t row = 0; row < s.m; ++row) {
        std::ranges::fill(sums, 0.0f);
        for (int64_t begin = 0; begin < s.k; begin += part_of_k) {
            std::ranges::fill(part, 0.0f);
            for (int64_t i = begin; i < std::min(begin + part_of_k, s.k); ++i) {
                const float factor = of_a[static_cast<size_t>(i * s.m + row)];
                const float* const others = of_b.data() + i * s.n;
                for (size_t col = 0; col < part.size(); ++col) part[col] += factor * others[col];
            }
            for (size_t col = 0; col < part.size(); ++col) sums[col] += part[col];
        }
        for (int64_t col = 0; col < s.n; ++col) {
            const int64_t at = row * s.c.stride + col;
            float value = alpha * sums[static_cast<size_t>(col)];
            if (s.factors == FactorsFrom::row_scales) value *= scales.a[row] * scales.b[col];
            if (beta != 0.0f) value += beta * number_at(s.result, c, at);
            if (s.result == DType::bf16) {
                static_cast<Bf16*>(c)[at] = bf16_encode(value);
            } else {
                static_cast<float*>(c)[at] = value;
            }
        }
    }
}

}  // namespace

void GpuProduct::run(const Context&, const float* alpha, const void* a, const void* b, const float* beta,
                     void* c, const Tensor&, const Scales& scales) const {
    // As the library does, factors of the host are read now, those of the GPU when the product is made.
    const GpuProductShape s = impl_->shape;
    const bool are_there = s.factors == FactorsFrom::gpu, has_scales = s.factors == FactorsFrom::scales;
    const float alpha_now = are_there ? 0.0f : *alpha, beta_now = are_there ? 0.0f : *beta;
    simulated_gpu::queue([=] {
        float factor = are_there ? *alpha : alpha_now;
        if (has_scales && scales.a != nullptr) factor *= *scales.a;
        if (has_scales && scales.b != nullptr) factor *= *scales.b;
        multiply(s, factor, a, b, are_there ? *beta : beta_now, c, scales);
    });
}

bool has_fp8_tensor_cores() { return true; }

uint32_t address_alignment(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return address % 256 == 0 ? 256 : 1u << std::countr_zero(address);
}

std::string gpu_product_description() { return "cublaslt simulated"; }

}  // namespace nibble::cuda
