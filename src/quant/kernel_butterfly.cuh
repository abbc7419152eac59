// The Hadamard butterfly of numbers that threads hold, in the order of hadamard_transform().
#pragma once

#include "core/cuda_check.cuh"
#include "numerics/hadamard.h"

namespace nibble::cuda {

// Stages h, 2h, ... of `count` elements, in place.
template <int kFirst, int kEnd, int kCount>
__device__ __forceinline__ void stages(float (&x)[kCount]) {
#pragma unroll
    for (int h = kFirst; h < kEnd; h *= 2) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if ((i & h) != 0) continue;
            const float a = x[i], b = x[i + h];
            x[i] = a + b;
            x[i + h] = a - b;
        }
    }
}

// All stages of blocks of `size`, of which neighbouring lanes hold kCount neighbours each.
template <int kCount>
__device__ __forceinline__ void butterfly(int size, float (&x)[kCount]) {
    stages<1, kCount>(x);
#pragma unroll
    for (int lane = 1; lane < kMaxRotation / kCount; lane *= 2) {
        if (lane >= size / kCount) break;
        // a + b, or, seen from b, a - b. The product with 1 or -1 is exact, so one rounding remains.
        const float side = (threadIdx.x & lane) != 0 ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            x[i] = __fmaf_rn(x[i], side, __shfl_xor_sync(0xffffffffu, x[i], lane));
    }
}

}  // namespace nibble::cuda
