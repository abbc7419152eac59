// The second stage of sums over rows: the first leaves a partial sum for every few of them.
#pragma once

#include "core/cuda_vector.cuh"

namespace nibble::cuda {

namespace detail {

template <typename Real>
__global__ void add_parts_kernel(int64_t count, int64_t cols, int64_t stride, const Real* parts, float* to) {
    __shared__ Real sums[kWarp][kWarp + 1];
    const int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x;
    Real sum = 0;
    if (c < cols) {
#pragma unroll 8
        for (int64_t i = threadIdx.y; i < count; i += kWarp) sum += parts[i * stride + c];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= cols) return;
    for (int y = 1; y < kWarp; ++y) sum += sums[y][threadIdx.x];
    to[c] += static_cast<float>(sum);
}

}  // namespace detail

// to[c] += the sum of parts[i * stride + c] over i, in an order that depends on `count` alone. parts: F32 or
// F64; to: F32 [cols].
template <typename Real>
void add_parts(const Context& context, int64_t count, int64_t cols, int64_t stride, const Real* parts,
               float* to) {
    launch(context, detail::add_parts_kernel<Real>,
           dim3(static_cast<unsigned>(divide_up<int64_t>(cols, kWarp))), dim3(kWarp, kWarp), 0, count, cols,
           stride, parts, to);
}

}  // namespace nibble::cuda
