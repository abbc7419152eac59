// Smooth-SwiGLU (Fishman et al., arXiv 2409.12517): the channels of the SwiGLU's output are scaled before
// they are quantised, the columns of the down projection by the inverse. The function stays the same.
#pragma once

#include "core/core.h"
#include "recipe/modifier.h"

namespace nibble {

// h: BF16 or F32 [T, F]; scales: F32 [F], overwritten. With a_i the largest magnitude of channel i and a that
// of h: (a / a_i)^strength, rounded down to a power of two unless scale = "exact", at most 2^16; 1 for a
// channel of zeros.
void channel_scales(Context& context, const SmoothSwiglu& options, const Tensor& h, const Tensor& scales);

// x <- x diag(scales), BF16 or F32 [R, F].
void multiply_columns(Context& context, const Tensor& x, const Tensor& scales);
// out <- x diag(1 / scales), F32 [R, F]; added to `out` if `accumulate`.
void divide_columns(Context& context, const Tensor& x, const Tensor& scales, const Tensor& out,
                    bool accumulate = false);

}  // namespace nibble
