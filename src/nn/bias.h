// The bias of a projection (Qwen2's queries, keys and values).
#pragma once

#include "core/core.h"

namespace nibble {

// y <- y + bias, each row, rounded to y's dtype. y: BF16 or F32 [T, N]; bias: F32 [N].
void add_bias(Context& context, const Tensor& y, const Tensor& bias);
// dbias <- dbias + the sum of the rows of dy, summed in double. dy: BF16 or F32 [T, N]; dbias: F32 [N].
void bias_backward(Context& context, const Tensor& dy, const Tensor& dbias);

}  // namespace nibble
