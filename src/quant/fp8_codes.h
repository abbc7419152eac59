// Matrices of FP8 codes that are made of other matrices' codes, for products on FP8 tensor cores, which read
// both operands with the contraction dimension contiguous.
#pragma once

#include "numerics/numerics.h"
#include "quant/quant.h"

namespace nibble {

// The transpose of a matrix of 8-bit codes whose only scale is the tensor's: [padded_cols, rows], in the
// arena, the tensor scale shared with q. Its rows are padded with zeros as its spec says.
QuantizedMatrix transposed_codes(Context& context, const QuantizedMatrix& q);

// Memory for the transpose of such a matrix, of which only the shape counts, with a tensor scale of its own.
QuantizedMatrix allocate_transpose(Context& context, const QuantizedMatrix& q);
// quantize(), and the codes of transposed_codes() for `transpose`, with which `out` then shares its tensor
// scale: where a GPU has a kernel for that, from one read of x. spec: fp8 with one scale for the tensor.
void quantize_with_transpose(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                             QuantizedMatrix& out, const QuantizedMatrix& transpose,
                             const QuantizeOptions& options = {});

// The exponents that blocks of MXFP4 are given inside FP8: 2^top for the largest scale of a row, so that 6
// times it is an element, down to the last one times which all E2M1 numbers are elements, `exact` binades
// below.
struct FoldRange {
    int top, exact;
};
NIBBLE_HD constexpr FoldRange fold_range(Element element) {
    return element == Element::e5m2 ? FoldRange{13, 28} : FoldRange{6, 14};
}

// An MXFP4 matrix as FP8 codes with one scale for each row, in the arena: the scales of the blocks are folded
// into their elements. With b the largest scale byte of the row (at least top + 1),
//
//   code = nearest(e2m1 * 2^(byte - b + top)),   scale of the row = 2^(b - 127 - top)
//
// Exact for every block whose scale lies within `exact` binades of the row's largest; elements of smaller
// blocks may be rounded.
struct FoldedMatrix {
    QuantizedMatrix codes;  // "fp8:e4m3 row" or "fp8:e5m2 row", with the tensor scale of the MXFP4 matrix
    Tensor rounded;         // U32 [1]: its blocks that folding changed; 0: it is the MXFP4 matrix

    const uint32_t* rounded_blocks() const { return static_cast<const uint32_t*>(rounded.data); }
};
// element: e4m3 or e5m2. Throws Error for another one, and where q is not MXFP4.
FoldedMatrix folded_to_fp8(Context& context, const QuantizedMatrix& q, Element element);

// One element whose block's scale lies `below` binades under the row's largest: its value in the units of FP8
// (unchanged from 63 on, where it is less than half the smallest of them), its code, and whether that is
// exact.
NIBBLE_HD float folded_value(Element element, uint8_t e2m1_code, int below) {
    return e2m1_decode(e2m1_code) * power_of_two(fold_range(element).top - (below < 63 ? below : 63));
}
NIBBLE_HD uint8_t folded_code(Element element, uint8_t e2m1_code, int below) {
    const float value = folded_value(element, e2m1_code, below);
    return element == Element::e5m2 ? SignedElement<E5M2, 0x80>::nearest(value)
                                    : SignedElement<E4M3, 0x80>::nearest(value);
}
NIBBLE_HD bool is_folded_exactly(Element element, uint8_t e2m1_code, int below) {
    return element_decode(element, folded_code(element, e2m1_code, below)) ==
           folded_value(element, e2m1_code, below);
}

}  // namespace nibble
