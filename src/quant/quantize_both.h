// Both orientations of a gradient or of a layer's input, along its rows and along its columns, quantised from
// one read.
#pragma once

#include "quant/quant.h"

namespace nibble {

// One of two operands that are made of one tensor.
struct OperandOfBoth {
    QuantizedMatrix* out;  // made by allocate_quantized()
    RandomKey key;
    QuantizeOptions options = {};  // without `transposed`
};
// Whether quantize_both() takes x of this type and these specs: BF16 on a GPU, every spec with itself, and
// all others but for two that have fast kernels while the pair has none: their two reads take less time.
bool can_quantize_both(const Context& context, DType dtype, const QuantSpec& rows, const QuantSpec& columns);
// Quantises x, [rows, cols], and its transpose: as quantize() of each, but x is read once, and once before
// that where amaxes are to be found. An operand's contraction may be padded with more columns than its spec
// asks for. Allocates from context.arena.
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

namespace cuda {

bool can_quantize_both(DType dtype, const QuantSpec& rows, const QuantSpec& columns);
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

}  // namespace cuda

}  // namespace nibble
