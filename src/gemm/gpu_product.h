// GpuProduct: one plain matrix product on a GPU. The only door to cuBLASLt. For .cu files.
#pragma once

#include <compare>
#include <string>

#include "core/core.h"

namespace nibble::cuda {

// A matrix with contiguous rows, `stride` elements apart, that begins at a multiple of `alignment` bytes.
struct StoredMatrix {
    int64_t stride = 0;
    bool is_transposed = false;  // an operand is stored [k, rows] instead of [rows, k]
    uint32_t alignment = 0;

    auto operator<=>(const StoredMatrix&) const = default;
};

// Where a product's factors come from. alpha and beta are the host's, unless they are the GPU's.
enum class FactorsFrom : uint8_t {
    host,
    gpu,         // alpha and beta are read from its memory when the product runs; not in FP8
    scales,      // FP8: beside them A and B may have scales, which are read there
    row_scales,  // FP8: beside them each row of A and of B has a scale, which is read there
};

// C[m, n] = alpha * A[m, k] · B[n, k]ᵀ + beta * C, FP32 sums; narrower ones in FP8.
struct GpuProductShape {
    int64_t m = 0, n = 0, k = 0;
    StoredMatrix a, b, c;
    // Both BF16; both F32, whose products are not rounded to TF32; or E4M3 and E5M2, not both E5M2, neither
    // stored transposed.
    DType of_a = DType::bf16, of_b = DType::bf16;
    DType result = DType::f32;  // of C: F32; or BF16, with operands other than F32
    FactorsFrom factors = FactorsFrom::host;
    bool fast_sums = false;  // FP8: partial sums stay in the tensor cores' narrow registers

    bool is_fp8() const { return of_a == DType::e4m3 || of_a == DType::e5m2; }

    auto operator<=>(const GpuProductShape&) const = default;
};

class GpuProduct {
  public:
    // From the process's cache; made at first use. `measure`: a large product's algorithms are timed then,
    // which waits for the GPU and takes its memory for a moment, so this is for planning passes. The choice
    // changes no bit: algorithms compete that sum over k in one sequence, and that gave the bits of the one
    // that the library proposes when they were tried.
    static const GpuProduct& get(const GpuProductShape& shape, bool measure = false);
    // The same; null where the library does not have the product.
    static const GpuProduct* find(const GpuProductShape& shape, bool measure = false);

    // What run() needs beside its operands, aligned to 256 bytes.
    static constexpr int64_t kWorkspace = 32 << 20;
    // FactorsFrom::scales: of A and of B, F32 [1]; null: 1. FactorsFrom::row_scales: F32 [m] and [n], at
    // multiples of 16 bytes, neither null.
    struct Scales {
        const float *a = nullptr, *b = nullptr;
    };
    void run(const Context& context, const float* alpha, const void* a, const void* b, const float* beta,
             void* c, const Tensor& workspace, const Scales& scales) const;

    GpuProduct(const GpuProduct&) = delete;
    GpuProduct& operator=(const GpuProduct&) = delete;
    ~GpuProduct();

  private:
    GpuProduct(const GpuProductShape& shape, bool measure);

    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Whether the GPU in use has tensor cores for FP8.
bool has_fp8_tensor_cores();

// The largest power of two, up to 256, that divides an address.
uint32_t address_alignment(const void* data);

// "cublaslt 13.1.0".
std::string gpu_product_description();

}  // namespace nibble::cuda
