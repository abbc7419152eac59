// The seam between the definition of a quantiser and its fast form. Only quantize.cpp calls this.
#pragma once

#include "quant/quant.h"

namespace nibble {

// Quantises like quantize_reference(), to the same bytes, and returns true; or returns false, having written
// nothing that matters, for a spec, a shape or values that it does not accelerate. The caller has checked the
// arguments and that the arena is not planning. Values that are not finite end in the same error
// (fail_not_finite, quant/internal.h).
bool quantize_simd(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                   QuantizedMatrix& out, const QuantizeOptions& options);

}  // namespace nibble
