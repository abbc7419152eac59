// What of CUDA is not C++: launches, shared memory of a size chosen at the launch, and instructions that have
// no function. tests/simulated_gpu has its own form of this file, and takes all other .cu files as they are.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace nibble::cuda {

template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                  Arguments&&... arguments) {
    kernel<<<grid, block, shared, stream>>>(std::forward<Arguments>(arguments)...);
}

// The bytes of shared memory that the launch asked for, aligned to 16.
template <typename T>
__device__ T* dynamic_shared() {
    extern __shared__ uint4 bytes_of_launch[];
    return reinterpret_cast<T*>(bytes_of_launch);
}

// What the compiler keeps in a register, instead of computing it again at every use.
template <typename T>
__device__ __forceinline__ void keep(T& value) {
    asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void keep(float& value) { asm volatile("" : "+f"(value)); }

// The larger one; NaN if one of them is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// Rounded to BF16, the first in the low half.
__device__ __forceinline__ uint32_t bf16_pair(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// The codes of two numbers in E4M3 or E5M2, the first in the low byte: to nearest, ties to even, saturating,
// the sign of zero kept. values <- what the codes are worth, by way of FP16, which holds all of them.
// sm_89 and newer.
template <bool kIsE5M2>
__device__ __forceinline__ uint16_t fp8_pair(float first, float second, float (&values)[2]) {
    uint16_t pair = 0;
#if __CUDA_ARCH__ >= 890
    uint32_t halves;
    if constexpr (kIsE5M2) {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
        asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
    } else {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    }
    asm("cvt.f32.f16 %0, %1;" : "=f"(values[0]) : "h"(static_cast<uint16_t>(halves & 0xffffu)));
    asm("cvt.f32.f16 %0, %1;" : "=f"(values[1]) : "h"(static_cast<uint16_t>(halves >> 16)));
#endif
    return pair;
}

}  // namespace nibble::cuda
