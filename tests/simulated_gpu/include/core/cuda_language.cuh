// The simulated GPU's form of src/core/cuda_language.cuh.
#pragma once

#include <cuda_runtime.h>

#include <limits>
#include <tuple>
#include <utility>

#include "numerics/bf16.h"
#include "numerics/elements.h"

namespace simulated_gpu {

// Runs body(of_body) as every thread of the grid.
void run(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* of_body);
void* dynamic_shared();

}  // namespace simulated_gpu

namespace nibble::cuda {

template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t,
                  Arguments&&... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<std::remove_const_t<Parameters>...> arguments;
    };
    simulated_gpu::queue([=, call = Call{kernel, {std::forward<Arguments>(arguments)...}}]() mutable {
        simulated_gpu::run(
            grid, block, shared,
            [](void* of_body) {
                const Call& made = *static_cast<Call*>(of_body);
                std::apply(made.kernel, made.arguments);
            },
            &call);
    });
}

template <typename T>
T* dynamic_shared() {
    return static_cast<T*>(simulated_gpu::dynamic_shared());
}

template <typename T>
void keep(T&) {}

inline float max_or_nan(float a, float b) {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<float>::quiet_NaN() : std::fmax(a, b);
}

inline uint32_t bf16_pair(float first, float second) {
    return bf16_encode(first).bits | uint32_t{bf16_encode(second).bits} << 16;
}

template <bool kIsE5M2>
uint16_t fp8_pair(float first, float second, float (&values)[2]) {
    using Code = std::conditional_t<kIsE5M2, SignedElement<E5M2, 0x80>, SignedElement<E4M3, 0x80>>;
    const uint8_t low = Code::nearest(first), high = Code::nearest(second);
    values[0] = Code::decode(low);
    values[1] = Code::decode(high);
    return static_cast<uint16_t>(low | high << 8);
}

}  // namespace nibble::cuda
