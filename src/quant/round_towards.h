// Rounding a matrix towards another one, under scales of its own (Q-EMA, arXiv 2502.20853).
#pragma once

#include "quant/quant.h"

namespace nibble {

// Chooses the codes of q again: each element takes whichever of its two neighbours is nearer to `target`. q:
// quantize() of x; scales stay. The neighbours of x are the values that its block has next below and above it
// (dequantize() gives them: fl(fl(code * scale) * tensor scale)); beyond the block's largest value and on a
// value there is one neighbour. Halfway between them the code stays. `signs` are those that q was rotated
// with: where its spec rotates, all this happens in the rotated space. q holds codes; an operand beside them
// follows them. x, target: F32 [q.rows, q.cols or fewer].
void round_towards(Context& context, const Tensor& x, const Tensor& target, const SignBits& signs,
                   QuantizedMatrix& q);

}  // namespace nibble
