// The slope of dge.h, the same on every device.
#pragma once

#include <cmath>

#include "numerics/power.h"

namespace nibble {

// The constants of dge_slope().
struct DgeSlope {
    float k, exponent, cap;  // exponent: 1/k - 1
};

inline constexpr float kDgeLargest = 6.0f;  // of E2M1

// The interval between neighbouring codes that holds a magnitude in [0, 6]: [low, low + delta).
struct CodeInterval {
    float low, delta;
};
NIBBLE_HD CodeInterval code_interval(float magnitude) {
    if (magnitude >= 4.0f) return {4.0f, 2.0f};
    if (magnitude >= 2.0f) return {std::floor(magnitude), 1.0f};
    return {0.5f * std::floor(2.0f * magnitude), 0.5f};
}

NIBBLE_HD float dge_slope_reference(const DgeSlope& dge, float x) {
    const float magnitude = std::fmin(std::fabs(x), kDgeLargest);
    const CodeInterval i = code_interval(magnitude);
    const float place = std::fabs(2.0f * (magnitude - i.low) / i.delta - 1.0f);
    if (place == 0.0f && dge.exponent < 0.0f) return dge.cap;
    const float slope = static_cast<float>(portable_power(place, dge.exponent)) / dge.k;
    return slope < dge.cap ? slope : dge.cap;
}

}  // namespace nibble
