// What E2M1 codes are worth, as BF16: for kernels that read 4-bit operands.
#pragma once

#include <cuda_bf16.h>

#include "core/cuda_check.cuh"

namespace nibble::cuda {

// to[0 .. 4) <- the pairs of BF16 that eight codes stand for, times a pair of BF16 scales. code * scale is
// exact.
__device__ __forceinline__ void e2m1_times(uint32_t eight, uint32_t scales, uint32_t* to) {
    // Of the two codes in a byte: the upper bit of each four becomes all bits of the upper byte of a half.
    const auto signs_of_byte = [eight](uint32_t byte) {
        return __byte_perm(eight << 4, eight, 0xc080u + 0x1010u * byte) & 0x80008000u;
    };
    const auto times = [scales](uint32_t pair) {
        const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair),
                                               *reinterpret_cast<const __nv_bfloat162*>(&scales));
        return *reinterpret_cast<const uint32_t*>(&product);
    };
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t four = eight >> (i * 16) & 0x7777u;
        // The bytes of the magnitudes in BF16, by table.
        const uint32_t low = __byte_perm(0xc0800000u, 0xc0804000u, four);
        const uint32_t high = __byte_perm(0x3f3f3f00u, 0x40404040u, four);
        to[2 * i] = times(__byte_perm(low, high, 0x5140) | signs_of_byte(2 * i));
        to[2 * i + 1] = times(__byte_perm(low, high, 0x7362) | signs_of_byte(2 * i + 1));
    }
}

}  // namespace nibble::cuda
