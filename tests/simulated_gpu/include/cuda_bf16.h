#pragma once

#include <cuda_runtime.h>

#include "numerics/bf16.h"

struct __nv_bfloat162 {
    nibble::Bf16 x, y;
};
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    const auto product = [](nibble::Bf16 p, nibble::Bf16 q) {
        return nibble::bf16_encode(nibble::bf16_decode(p) * nibble::bf16_decode(q));
    };
    return {product(a.x, b.x), product(a.y, b.y)};
}
