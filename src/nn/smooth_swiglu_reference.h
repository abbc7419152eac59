// The scale of one channel of smooth-swiglu, the same on every device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/power.h"

namespace nibble {

inline constexpr float kLargestChannelScale = 65536;  // beyond: nothing that the others' rounding leaves

// amax: of all channels, at least channel_amax, that of this one.
NIBBLE_HD float channel_scale(double strength, bool is_exact, float amax, float channel_amax) {
    if (channel_amax == 0.0f) return 1.0f;
    float scale = std::fmin(amax / channel_amax, kLargestChannelScale);
    if (strength != 1) scale = static_cast<float>(portable_power(double{scale}, strength));
    if (is_exact) return scale;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scale) & 0x7f800000u);  // at least 1: normal
}

}  // namespace nibble
