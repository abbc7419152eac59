// SwiGLU: h = silu(gate) * up (Shazeer, arXiv 2002.05202).
#pragma once

#include "core/core.h"

namespace nibble {

// gate_up: [T, 2F], gate first; h: [T, F]. amax: if not null, receives max|h| (after rounding);
// memory of the context's device.
void swiglu_forward(Context& context, const Tensor& gate_up, const Tensor& h, float* amax = nullptr);
// dgate_up: [T, 2F], overwritten; may be gate_up itself. amax: likewise, of dgate_up.
void swiglu_backward(Context& context, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     float* amax = nullptr);

}  // namespace nibble
