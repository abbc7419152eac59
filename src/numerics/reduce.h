// Sums whose order is part of the result.
#pragma once

#include "numerics/host_device.h"

namespace nibble {

// The sum of `count` values (a power of two, at most 128) by a binary tree of neighbours: x[0] + x[1],
// x[2] + x[3], ..., then the same over those sums.
NIBBLE_HD float tree_sum(const float* x, int count) {
    float sums[64];
    if (count == 1) return x[0];
    count /= 2;
    for (int i = 0; i < count; ++i) sums[i] = x[2 * i] + x[2 * i + 1];
    for (; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    }
    return sums[0];
}

}  // namespace nibble
