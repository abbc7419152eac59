// Clipping by the global norm (Pascanu, Mikolov and Bengio, arXiv 1211.5063, algorithm 1).
#pragma once

#include <cstdint>
#include <span>

#include "core/core.h"

namespace nibble {

struct GradientNorm {
    double norm = 0;  // Euclidean, over all elements of all tensors
    // The first tensor that holds a NaN or an infinity, or -1. The norm is then not finite.
    int64_t first_non_finite = -1;
};

// Squares are summed in double, in chunks of fixed size that are added in order: the same bits for any number
// of threads. gradients: F32 or BF16. Scratch comes from context.arena; a planning pass returns 0.
GradientNorm global_norm(Context& context, std::span<const Tensor> gradients);
// The same, without waiting for a GPU: result, F64 [2] on the context's device, receives what read_norm()
// gives.
void global_norm(Context& context, std::span<const Tensor> gradients, const Tensor& result);
GradientNorm read_norm(const Context& context, const Tensor& result);

// What gradients are multiplied by so that their norm is at most `limit`: limit / norm, or 1 when the norm is
// below. limit = 0: no clipping.
double clip_factor(double norm, double limit);
// The same where the norm is, without waiting: factor, F32 [1], for AdamW::finish_update(). It is NaN, which
// leaves everything as it is, if the norm (global_norm()) or the sum of losses (head_loss_backward()) is not
// finite, or Context::fault is raised.
void clip_factor(const Context& context, const Tensor& norm, const Tensor& losses, double limit,
                 const Tensor& factor);

}  // namespace nibble
