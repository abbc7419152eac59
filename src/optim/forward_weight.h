// Q(w): the weight as the forward multiplies it, for what holds weights to it after an update.
#pragma once

#include "core/core.h"
#include "quant/quant.h"

namespace nibble {

// w quantised by `spec` (that of fprop.w), its values in the space of w: turned back where the spec rotates.
// w: F32 [N, K]. Returns F32 [N, spec.padded(K)] in context.arena; the columns beyond K are not w's. `key`
// gives the rotation's signs; the amax is always that of w itself.
Tensor forward_weight(Context& context, const QuantSpec& spec, const RandomKey& key, const Tensor& w);

// The chunks of rows that the passes over a matrix are divided into: they do not depend on the threads.
inline constexpr int64_t kUpdateRows = 16;

}  // namespace nibble
