// The rotation of one block: random signs, then the Sylvester-Hadamard butterfly, then one multiply.
// Exact order of operations: docs/numerics.md, section 5. H is symmetric and H·H = 1.
#pragma once

#include <cmath>

#include "numerics/host_device.h"

namespace nibble {

inline constexpr int kMaxRotation = 128;

// fl(1 / sqrt(size)) for size 16, 32, 64, 128.
NIBBLE_HD float hadamard_factor(int size) {
    return size == 16   ? 0.25f
           : size == 32 ? 0.17677669529663687f
           : size == 64 ? 0.125f
                        : 0.08838834764831845f;
}

// x <- H x over `size` values `stride` apart: stages h = 1, 2, 4 ... of (a + b, a - b), then the factor.
NIBBLE_HD void hadamard_transform(float* x, int size, int stride, float factor) {
    for (int h = 1; h < size; h *= 2) {
        for (int block = 0; block < size; block += 2 * h) {
            for (int j = block; j < block + h; ++j) {
                const float a = x[j * stride], b = x[(j + h) * stride];
                x[j * stride] = a + b;
                x[(j + h) * stride] = a - b;
            }
        }
    }
    for (int j = 0; j < size; ++j) x[j * stride] *= factor;
}
NIBBLE_HD void hadamard_transform(float* x, int size, int stride = 1) {
    hadamard_transform(x, size, stride, hadamard_factor(size));
}

}  // namespace nibble
