// E4M3 (fn), the scale byte of NVFP4: bias 7, largest value 448, subnormal step 2^-9, no infinity.
// Scales are non-negative, so these functions take and give no sign.
// Source: Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433, table 1.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/host_device.h"
#include "numerics/stochastic.h"

namespace nibble {

inline constexpr float kE4M3Max = 448.0f;
inline constexpr uint8_t kE4M3MaxByte = 0x7e;

// Bytes 0..0x7e; 0x7f (NaN) must not occur.
NIBBLE_HD float e4m3_decode(uint8_t byte) {
    const int exponent = byte >> 3, mantissa = byte & 7;
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(static_cast<uint32_t>(exponent + 120) << 23 | static_cast<uint32_t>(mantissa)
                                                                                  << 20);
}

// The largest byte whose value is at most v. 0 <= v; v >= 448 gives the largest byte.
NIBBLE_HD uint8_t e4m3_floor(float v) {
    if (v >= kE4M3Max) return kE4M3MaxByte;
    if (v < 0x1p-6f) return static_cast<uint8_t>(v * 0x1p9f);
    const uint32_t bits = std::bit_cast<uint32_t>(v);
    return static_cast<uint8_t>((bits >> 20) - (120u << 3));
}

// How far v lies from value(floor) to its upper neighbour, in [0, 1); exact. 0 at saturation.
NIBBLE_HD float e4m3_fraction(float v, uint8_t floor_byte) {
    if (floor_byte == kE4M3MaxByte) return 0.0f;
    const float lo = e4m3_decode(floor_byte), hi = e4m3_decode(static_cast<uint8_t>(floor_byte + 1));
    return (v - lo) / (hi - lo);
}

// Round to nearest, ties to even, saturating. v >= 0, not NaN.
NIBBLE_HD uint8_t e4m3_nearest(float v) {
    const uint8_t low = e4m3_floor(v);
    const float fraction = e4m3_fraction(v, low);
    const bool up = fraction > 0.5f || (fraction == 0.5f && (low & 1) != 0);
    return static_cast<uint8_t>(low + up);
}

// Stochastic rounding on all of E4M3, subnormals included; grid points never move; saturating.
NIBBLE_HD uint8_t e4m3_stochastic(float v, uint16_t coin) {
    const uint8_t low = e4m3_floor(v);
    return static_cast<uint8_t>(low + rounds_up(e4m3_fraction(v, low), coin));
}

}  // namespace nibble
