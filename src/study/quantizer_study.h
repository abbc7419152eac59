// What a quantiser does to a tensor, in figures that the papers use.
#pragma once

#include <string_view>

#include "quant/quant.h"

namespace nibble {

// Over all elements, in the space in which they are quantised (rotated, if the spec rotates): x against its
// quantised value, q.
struct QuantizerFigures {
    double relative_mse = 0;    // |q - x|² / |x|²
    double effective_bits = 0;  // -log2(relative_mse) / 2 (arXiv 2601.22813)
    double misalignment = 0;    // 1 - <q, x> / <x, x>: what is lost of x along x (arXiv 2505.14669)
    double clipped = 0;         // share of elements beyond the largest value of their block
    double flushed = 0;         // share of elements that are not 0 and become 0
    double bits = 0;            // stored for an element: codes and scale bytes
};

// x: F32 or BF16 [rows, cols], finite. The bits are those of quantize() under `key`. Throws Error as that
// does.
QuantizerFigures study_quantizer(const QuantSpec& spec, const Tensor& x, const RandomKey& key = {});

}  // namespace nibble
