// Token embedding.
#pragma once

#include "core/core.h"

namespace nibble {

// y[t] = weight[tokens[t]]. tokens: I32 [T], each in [0, V); weight: F32 [V, C]; y: [T, C].
// Throws Error for a token outside the vocabulary; on a GPU its row becomes NaN.
void embedding_forward(Context& context, const Tensor& tokens, const Tensor& weight, const Tensor& y);
// dweight[tokens[t]] += dy[t], in the order of t whatever the number of threads.
void embedding_backward(Context& context, const Tensor& dy, const Tensor& tokens, const Tensor& dweight);

}  // namespace nibble
