// Inside gemm/: what a product is, on whatever device it is made.
#pragma once

#include "gemm/matmul.h"

namespace nibble {

// C[m, n] = A[m, k] · B[n, k]ᵀ
struct MatmulShape {
    int64_t m = 0, n = 0, k = 0;
    DType operands = DType::bf16;  // BF16; or F32, also where values have FP32 scales in them
    bool rounds = true;            // plain values are first rounded to BF16
};
// Throws Error where operands, C and options do not fit.
MatmulShape shape_of_matmul(const Operand& a, const Operand& b, const Tensor& c,
                            const MatmulOptions& options);

// Rows and columns of an operand as it is read, padding included.
struct Extent {
    int64_t rows = 0, k = 0;
};
Extent extent_of(const Operand& operand);

// Its FP32 scales vary along the columns.
inline bool has_fp32_values(const Operand& operand) {
    return operand.quantized != nullptr && operand.quantized->spec.has_fp32_groups();
}

// What multiplies an operand's values as a whole, F32 [1]; no shape: nothing.
inline const Tensor& scale_of(const Operand& operand) {
    return operand.quantized != nullptr ? operand.quantized->tensor_scale : operand.scale;
}
// 4/3 has no exact FP32 form, and products of scales are rounded once. A matrix that was quantised again
// carries the product of 4/3 and of the first scale, so the number is kept, and this factor puts back what
// rounding 4/3 lost.
inline double lost_of_scale(const Operand& operand) {
    const bool has_lost =
        operand.quantized != nullptr && operand.quantized->spec.scale == ScaleRule::three_quarters;
    return has_lost ? (4.0 / 3.0) / static_cast<double>(4.0f / 3.0f) : 1.0;
}

// A factor for each row of the product; no shape: none.
inline Tensor row_scales_of(const Operand& operand) {
    const bool has_scales = operand.quantized != nullptr && operand.quantized->spec.has_row_scales();
    return has_scales ? operand.quantized->fp32_scales : Tensor{};
}

// Warns, once in a process, that cuBLASLt has no FP8 product of such a shape, which is made in BF16 then,
// whatever a run's header says.
void warn_of_emulation(const MatmulShape& shape);

}  // namespace nibble
