#include "gemm/matmul_shape.h"

#include <mutex>

namespace nibble {

namespace {

void check_operand(const Operand& operand, std::string_view name) {
    if (operand.quantized != nullptr) {
        require(!operand.is_transposed, "matmul: {} is quantised and cannot be read transposed", name);
        require(operand.scale.shape.rank() == 0, "matmul: {} is quantised and has a scale of its own", name);
        return;
    }
    const DType dtype = operand.plain.dtype;
    require(dtype == DType::f32 || dtype == DType::bf16, "matmul: {} is {}, neither F32 nor BF16", name,
            name_of(dtype));
}

// Columns that were padded on with zeros, and not rotated into others, need not be multiplied.
int64_t k_without_padding(const Operand& operand, const Extent& extent) {
    const QuantizedMatrix* const q = operand.quantized;
    return q != nullptr && !q->spec.rotates_columns() ? q->cols : extent.k;
}

}  // namespace

Extent extent_of(const Operand& operand) {
    if (operand.quantized != nullptr) return {operand.quantized->rows, operand.quantized->padded_cols};
    const Tensor& t = operand.plain;
    return operand.is_transposed ? Extent{t.cols(), t.rows()} : Extent{t.rows(), t.cols()};
}

MatmulShape shape_of_matmul(const Operand& a, const Operand& b, const Tensor& c,
                            const MatmulOptions& options) {
    require(options.compute == DType::bf16 || options.compute == DType::f32,
            "matmul: compute is {}, neither BF16 nor F32", name_of(options.compute));
    check_operand(a, "A");
    check_operand(b, "B");
    Extent of_a = extent_of(a), of_b = extent_of(b);
    if (of_a.k != of_b.k) {
        of_a.k = k_without_padding(a, of_a);
        of_b.k = k_without_padding(b, of_b);
    }
    require(of_a.k == of_b.k, "matmul: A has {} columns and B has {}", of_a.k, of_b.k);
    require(c.dtype == DType::f32 || (c.dtype == DType::bf16 && !options.accumulate),
            "matmul: C is {}; it must be F32, or BF16 without accumulation", name_of(c.dtype));
    require(c.cols() == of_b.rows && c.count() == of_a.rows * of_b.rows,
            "matmul: C is {}, but the product is [{}, {}]", c.shape.str(), of_a.rows, of_b.rows);
    // Values with FP32 scales in them are not exact in BF16.
    const bool rounds = options.compute == DType::bf16;
    const bool is_narrow = rounds && !has_fp32_values(a) && !has_fp32_values(b);
    return {of_a.rows, of_b.rows, of_a.k, is_narrow ? DType::bf16 : DType::f32, rounds};
}

void warn_of_emulation(const MatmulShape& shape) {
    static std::once_flag once;
    std::call_once(once, [&] {
        log()->warn(
            "cuBLASLt has no FP8 product of [{}, {}] and [{}, {}]: it, and others like it, are made in bf16; "
            "the "
            "header's fp8 does not hold for them",
            shape.m, shape.k, shape.n, shape.k);
    });
}

}  // namespace nibble
