// The CUDA forms of this room's functions, on memory of the GPU.
#pragma once

#include "optim/adamw.h"
#include "optim/clip.h"

namespace nibble::cuda {

// The table that adamw_update() reads: the tensors and their moments in chunks.
Buffer adamw_chunks(std::span<const OptimizedTensor> tensors, std::span<const AdamW::State> state);
// adamw_reference() of every element of every tensor; `keep` is that of tensors that decay, 1 for others.
void adamw_update(Context& context, const Buffer& chunks, const AdamWFactors& factors, DType moments);

GradientNorm global_norm(Context& context, std::span<const Tensor> gradients);

}  // namespace nibble::cuda
