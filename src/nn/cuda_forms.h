// The CUDA forms of this room (core/cuda.h).
#pragma once

#include "core/core.h"
#include "nn/attention.h"
#include "quant/quant.h"

namespace nibble::cuda {

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp);
void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv);

// quant_linear_parts.h
void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate);

}  // namespace nibble::cuda
