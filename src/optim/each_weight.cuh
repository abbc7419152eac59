// For kernels over the elements of a weight, beside its values in the forward (optim/forward_weight.h), whose
// rows may be longer.
#pragma once

#include "core/cuda_check.cuh"

namespace nibble::cuda {

inline constexpr int kWeightThreads = 256;

// A block has a row.
template <typename Body>
__global__ void __launch_bounds__(kWeightThreads)
    each_weight_kernel(int64_t cols, int64_t padded, const __grid_constant__ Body body) {
    const int64_t row = blockIdx.x;
#pragma unroll 4
    for (int64_t k = threadIdx.x; k < cols; k += kWeightThreads) body(row * cols + k, row * padded + k);
}

// Calls body(place in w, place in rows of `padded` elements) for every element of w, on the GPU. Body: a
// structure with a __device__ operator().
template <typename Body>
void each_weight(const Context& context, const Tensor& w, int64_t padded, const Body& body) {
    launch(context, each_weight_kernel<Body>, dim3(static_cast<unsigned>(w.rows())), dim3(kWeightThreads), 0,
           w.cols(), padded, body);
}

}  // namespace nibble::cuda
