// E2M1, the 4-bit element: magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6 are codes 0..7, the sign adds 8.
// Source: OCP Microscaling Formats v1.0, section 5.3.3.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/host_device.h"
#include "numerics/stochastic.h"

namespace nibble {

inline constexpr float kE2M1Max = 6.0f;

// The magnitude of code 0..7.
NIBBLE_HD float e2m1_magnitude(int code) {
    const int exponent = code >> 1;
    const float mantissa = static_cast<float>(code & 1);
    if (exponent == 0) return 0.5f * mantissa;
    return static_cast<float>(1 << (exponent - 1)) * (1.0f + 0.5f * mantissa);
}

NIBBLE_HD float e2m1_decode(uint8_t code) {
    const float magnitude = e2m1_magnitude(code & 7);
    return (code & 8) != 0 ? -magnitude : magnitude;
}

// Sign bit of the code: negative values keep it when they round to zero, and so does -0 (as the hardware).
NIBBLE_HD uint8_t e2m1_sign(float v) { return std::signbit(v) ? 8 : 0; }

// round=nearest: ties to the even code. Saturates at 6. v is not NaN.
NIBBLE_HD uint8_t e2m1_nearest(float v) {
    const float a = std::fabs(v);
    const int code =
        (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return static_cast<uint8_t>(e2m1_sign(v) | code);
}

// round=nearest-away: ties up in magnitude (Quartet II's emulation).
NIBBLE_HD uint8_t e2m1_nearest_away(float v) {
    const float a = std::fabs(v);
    const int code =
        (a >= 0.25f) + (a >= 0.75f) + (a >= 1.25f) + (a >= 1.75f) + (a >= 2.5f) + (a >= 3.5f) + (a >= 5.0f);
    return static_cast<uint8_t>(e2m1_sign(v) | code);
}

// round=nearest-down: ties down in magnitude (Quartet's emulation).
NIBBLE_HD uint8_t e2m1_nearest_down(float v) {
    const float a = std::fabs(v);
    const int code =
        (a > 0.25f) + (a > 0.75f) + (a > 1.25f) + (a > 1.75f) + (a > 2.5f) + (a > 3.5f) + (a > 5.0f);
    return static_cast<uint8_t>(e2m1_sign(v) | code);
}

// round=stochastic: up with the probability of the distance; grid points never move; above 6 saturates.
NIBBLE_HD uint8_t e2m1_stochastic(float v, uint16_t coin) {
    const float a = std::fabs(v);
    int low = (a >= 0.5f) + (a >= 1.0f) + (a >= 1.5f) + (a >= 2.0f) + (a >= 3.0f) + (a >= 4.0f) + (a >= 6.0f);
    if (low < 7) {
        const float lo = e2m1_magnitude(low), hi = e2m1_magnitude(low + 1);
        low += rounds_up((a - lo) / (hi - lo), coin);
    }
    return static_cast<uint8_t>(e2m1_sign(v) | low);
}

}  // namespace nibble
