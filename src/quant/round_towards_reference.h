// One element of round_towards(), the same on every device.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/e2m1.h"

namespace nibble {

inline constexpr int kE2M1Magnitudes = 8;

// What the magnitudes of E2M1 stand for in one block, in ascending order.
struct BlockValues {
    float of[kE2M1Magnitudes];
};
NIBBLE_HD BlockValues block_values(float scale, float tensor_scale) {
    BlockValues values;
    for (int m = 0; m < kE2M1Magnitudes; ++m) values.of[m] = e2m1_magnitude(m) * scale * tensor_scale;
    return values;
}

// The code of x: of its neighbours among the values, the one nearer to `target`; `code`, which it has,
// halfway between them.
NIBBLE_HD uint8_t neighbour_near(const BlockValues& values, float x, float target, uint8_t code) {
    const float a = std::fabs(x);
    int below = 0;
    while (below + 1 < kE2M1Magnitudes && values.of[below + 1] <= a) ++below;
    const int above = below + 1 < kE2M1Magnitudes && values.of[below] != a ? below + 1 : below;
    const float t = std::signbit(x) ? -target : target;
    const float to_below = std::fabs(t - values.of[below]), to_above = std::fabs(t - values.of[above]);
    if (to_below == to_above && above != below) return code;
    return static_cast<uint8_t>(e2m1_sign(x) | (to_above < to_below ? above : below));
}

// The byte of two neighbouring columns, k and k + 1, whose codes are chosen again.
NIBBLE_HD uint8_t codes_near(const BlockValues& values, float x0, float target0, float x1, float target1,
                             uint8_t pair) {
    const uint8_t low = neighbour_near(values, x0, target0, pair & 15);
    const uint8_t high = neighbour_near(values, x1, target1, static_cast<uint8_t>(pair >> 4));
    return static_cast<uint8_t>(low | high << 4);
}

}  // namespace nibble
