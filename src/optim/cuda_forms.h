// The CUDA forms of this room's functions, on memory of the GPU.
#pragma once

#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/oscireset.h"

namespace nibble::cuda {

// The table that adamw_update() reads: the tensors and their moments in chunks.
Buffer adamw_chunks(std::span<const OptimizedTensor> tensors, std::span<const AdamW::State> state);
// *there <- factors; there: on the GPU.
void set_adamw_factors(const Context& context, const AdamWFactors& factors, AdamWFactors* there);
// adamw_reference() of every element of every tensor; `keep` is that of tensors that decay, 1 for others.
// factors, gradient_factor: on the GPU; the second multiplies factors->gradient, NaN: nothing is done,
// null: 1.
void adamw_update(Context& context, const Buffer& chunks, const AdamWFactors* factors,
                  const float* gradient_factor, DType moments);

void global_norm(Context& context, std::span<const Tensor> gradients, const Tensor& result);
void clip_factor(const Context& context, const Tensor& norm, const Tensor& losses, double limit,
                 const Tensor& factor);

// The passes over a weight of cage_update(), qema_update() and of oscireset: in the .cpp files of their
// names.
void pull_towards(Context& context, const Tensor& values, float pull, const Tensor& w);
void add_to_average(Context& context, float kept, float added, const Tensor& w, const Tensor& average);
void add_paths(Context& context, const Tensor& before, const Tensor& after, const Tensor& w,
               const Oscillation& seen);
// Waits for the number of weights that were set. count: I64 [1], overwritten.
int64_t reset_oscillating(Context& context, const Tensor& values, float threshold, const Tensor& count,
                          const Tensor& w, const Oscillation& seen);

}  // namespace nibble::cuda
