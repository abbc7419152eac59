// Both orientations of a gradient, along its rows and along its columns, quantised from one read.
#pragma once

#include "quant/quant.h"

namespace nibble {

// One of two operands that are made of one tensor by one kernel.
struct OperandOfBoth {
    QuantizedMatrix* out;  // made by allocate_quantized(), both with the same Keep
    RandomKey key;
    const SignBits* signs = nullptr;    // as in QuantizeOptions
    const float* known_amax = nullptr;  // the same; wherever the spec has a tensor scale made of the amax
    std::string_view name = "input";
};
// Whether quantize_both() has a kernel for x of this type, these specs and what is kept; never on a CPU. It
// keeps operands, or of MXFP4 bytes.
bool can_quantize_both(const Context& context, DType dtype, const QuantSpec& rows, const QuantSpec& columns,
                       Keep keep);
// Quantises x, [rows, cols], and its transpose: as quantize() of each, but x is read once. Both matrices have
// the rows and columns of x; those of the transpose may be padded with more columns.
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

namespace cuda {

bool can_quantize_both(DType dtype, const QuantSpec& rows, const QuantSpec& columns, Keep keep);
void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns);

}  // namespace cuda

}  // namespace nibble
