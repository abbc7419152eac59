// Inside nn/ only: the search for what went wrong in a step.
#pragma once

#include "core/core.h"

namespace nibble {

// True if no element of x (F32 or BF16, on the context's device) is a NaN or an infinity. Waits for the GPU.
bool is_finite(const Context& context, const Tensor& x);

}  // namespace nibble
