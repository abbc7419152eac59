// CUDA forms of the layers (core/cuda.h says how they are called). Their contracts are those of the functions
// of the same name.
#pragma once

#include "nn/attention.h"

namespace nibble::cuda {

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp);
void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv);

}  // namespace nibble::cuda
