// The CUDA forms of this room (core/cuda.h).
#pragma once

#include "core/core.h"
#include "quant/quant.h"

namespace nibble::cuda {

// quant_linear_parts.h
void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate);

}  // namespace nibble::cuda
