// RMSNorm: y = x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467), with the residual
// sum that precedes it in every block.
#pragma once

#include "core/core.h"

namespace nibble {

// sum = x + delta (rounded to the activations' dtype), y = rmsnorm(sum).
// x, delta, sum, y: [T, C]; `sum` may be x itself; no data in `delta`: sum is not written and y = rmsnorm(x).
// weight: F32 [C]; rstd: F32 [T], 1 / sqrt(mean + eps), kept for backward.
// amax: if not null, receives max|y| (after rounding), for the quantiser that reads y; memory of
// the context's device.
void rmsnorm_forward(Context& context, const Tensor& x, const Tensor& delta, const Tensor& weight, float eps,
                     const Tensor& sum, const Tensor& y, const Tensor& rstd, float* amax = nullptr);

// dx = d_sum + gradient through the norm; `x` is what was normalised (forward's `sum`, or x).
// d_sum: the gradient that reaches the sum past the norm (the residual), [T, C], may be dx itself; no data:
// zero. dweight: F32 [C], accumulated.
void rmsnorm_backward(Context& context, const Tensor& dy, const Tensor& x, const Tensor& weight,
                      const Tensor& rstd, const Tensor& d_sum, const Tensor& dx, const Tensor& dweight);

}  // namespace nibble
