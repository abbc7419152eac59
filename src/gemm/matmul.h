// gemm/: matrix products over plain or quantised operands.
//
//   C[M, N] = alpha * A[M, K] · B[N, K]ᵀ        both operands K-contiguous ("TN"), as FP4 hardware wants them
//
// Products of operands are exact; sums are FP32 in the library's order. Operands whose FP32 scales vary along
// K (QuantSpec::has_fp32_groups) are rounded once to F32 and multiplied there; or, where both are quantised
// and neither has scales of rows, a GPU multiplies sums over groups of K by these scales
// (gemm/group_product.h). Scales of rows and tensors are factors of C. This room never decides what is
// quantised.
#pragma once

#include <optional>

#include "core/core.h"
#include "quant/quant.h"

namespace nibble {

// One operand: a plain F32 or BF16 tensor, or a quantised matrix.
struct Operand {
    Operand(const Tensor& t) : plain(t) {}                // NOLINT: implicit on purpose
    Operand(const QuantizedMatrix& q) : quantized(&q) {}  // NOLINT
    // The plain tensor is stored [K, rows] instead of [rows, K].
    static Operand transposed(const Tensor& t) {
        Operand o(t);
        o.is_transposed = true;
        return o;
    }
    Tensor plain;
    const QuantizedMatrix* quantized = nullptr;  // must live until the product is done
    bool is_transposed = false;
    Tensor scale;  // F32 [1], a factor that the plain values lack; no shape: 1
};

// How FP8 tensor cores sum, which is narrower than FP32 (docs/gpu.md): in FP32 every few products, or not.
enum class Fp8Sums : uint8_t { precise, fast };

// Of products of FP8 codes, cuBLASLt wants K and N that are multiples of this: rows of 16 bytes.
inline constexpr int64_t kFp8Multiple = 16;

struct MatmulOptions {
    // Multiplies the operands' scales: a product formed in double, but by FP8 tensor cores.
    std::optional<float> alpha;
    bool accumulate = false;           // C += instead of C = (F32 output only)
    const float* alpha_row = nullptr;  // optional factor for each row of C [M]
    const float* alpha_col = nullptr;  // and for each column [N]
    // BF16: plain F32 operands are rounded to BF16 first. F32: products of F32 values.
    DType compute = DType::bf16;
    // Given, two operands of FP8 codes without scales along K are multiplied as they are by a GPU that has
    // tensor cores for that (has_fp8_products()), if it takes their sizes: K and N multiples of kFp8Multiple.
    // Else, and where nothing is given, exactly.
    std::optional<Fp8Sums> fp8;
};

// C: F32 or BF16 [M, N] (leading dimensions are rows). Throws Error when shapes do not fit.
void matmul(Context& context, const Operand& a, const Operand& b, const Tensor& c,
            const MatmulOptions& options = {});

// Whether the device multiplies FP8: a GPU of sm_89 or newer.
bool has_fp8_products(Device device);

// How a device executes products, for the run's header: "onednn 2.6.3, bf16 amx", "onednn 2.6.3, f32 avx2" or
// "cublaslt 13.1.0".
std::string matmul_description(Device device = Device::cpu);

}  // namespace nibble
