// For .cu files: calls of the CUDA runtime and launches of kernels that do not fail unnoticed.
#pragma once

#include "core/cuda.h"
#include "core/cuda_language.cuh"

namespace nibble::cuda {

// Throws Error unless a call of the CUDA runtime went well. `what`: "copy of 12 bytes to the GPU".
inline void check(cudaError_t status, std::string_view what) {
    if (status != cudaSuccess) [[unlikely]]
        fail("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

// kernel<<<grid, block, shared, context.stream>>>(arguments...). An empty grid is no work.
template <typename... Parameters, typename... Arguments>
void launch(const Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            Arguments&&... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    start_kernel(kernel, grid, block, shared, context.stream, std::forward<Arguments>(arguments)...);
    check(cudaGetLastError(), "launch of a kernel");
}

constexpr int kWarp = 32;

template <typename Integer>
constexpr Integer divide_up(Integer a, Integer b) {
    return (a + b - 1) / b;
}

}  // namespace nibble::cuda
