// Both orientations of a gradient, along its rows and along its columns, quantised from one read.
#pragma once

#include "quant/quant.h"

namespace nibble {

// One of two operands that are made of one tensor.
struct OperandOfBoth {
    QuantizedMatrix* out;  // made by allocate_quantized()
    RandomKey key;
    QuantizeOptions options = {};  // without `transposed`
};
// Whether quantize_both() takes x of this type, these specs and what is kept of both: BF16 on a GPU, all
// specs, but for two that have fast kernels of their own while the pair has none: their two reads take less
// time.
bool can_quantize_both(const Context& context, DType dtype, const QuantSpec& rows, const QuantSpec& columns,
                       Keep keep);
// Quantises x, [rows, cols], and its transpose: as quantize() of each, but x is read once, and once before
// that where amaxes are to be found. An operand's contraction may be padded with more columns than its spec
// asks for. Allocates from context.arena.
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

namespace cuda {

bool can_quantize_both(DType dtype, const QuantSpec& rows, const QuantSpec& columns, Keep keep);
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

}  // namespace cuda

}  // namespace nibble
