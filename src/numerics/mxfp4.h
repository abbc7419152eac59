// MXFP4, one block at a time: E2M1 elements and an E8M0 scale, a power of two, for 32 of them.
// The rules of docs/numerics.md, section 4. Each takes the block's largest magnitude and gives the scale
// byte.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/host_device.h"
#include "numerics/reduce.h"

namespace nibble {

inline constexpr int kMxfp4Block = 32;

// The byte of 2^exponent, clamped to 0 below and, above, so that 6 * scale is finite in BF16.
NIBBLE_HD uint8_t mxfp4_byte(int exponent) {
    const int clamped = exponent < -127 ? -127 : exponent > 125 ? 125 : exponent;
    return static_cast<uint8_t>(clamped + 127);
}

NIBBLE_HD bool has_mantissa(float x) { return (std::bit_cast<uint32_t>(x) & 0x7fffffu) != 0; }

// scale=floor: OCP Microscaling Formats v1.0, section 6.3. The block maximum lands in [4, 8).
NIBBLE_HD uint8_t mxfp4_floor(float amax) { return mxfp4_byte(exponent_of(amax) - 2); }

// scale=ceil: one more unless the maximum is a power of two. The block maximum lands in (2, 4].
NIBBLE_HD uint8_t mxfp4_ceil(float amax) { return mxfp4_byte(exponent_of(amax) - 2 + has_mantissa(amax)); }

// scale=rceil: amax / 6 rounded up to a power of two; nothing clips.
NIBBLE_HD uint8_t mxfp4_rceil(float amax) {
    const float v = amax * (1.0f / 6.0f);
    if (v <= 0x1p-127f) return 0;
    return mxfp4_byte(exponent_of(v) + has_mantissa(v));
}

// scale=even: the maximum rounded to one mantissa bit more than a power of two, then floor.
NIBBLE_HD uint8_t mxfp4_even(float amax) {
    return mxfp4_floor(std::bit_cast<float>((std::bit_cast<uint32_t>(amax) + (1u << 21)) & 0xff800000u));
}

// scale=three-quarters: the byte of floor, elements multiplied by 3/4 first, so that nothing clips; the
// tensor scale 4/3 undoes it (Tseng et al., arXiv 2502.20586).
inline constexpr float kThreeQuarters = 0.75f;
inline constexpr float kFourThirds = 4.0f / 3.0f;

// scale=quest: the clip that minimises the squared error of a normal distribution, from the block's spread
// (QuEST, arXiv 2502.05003). x: 32 values; amax: their largest magnitude. `about_mean`: quest:std, else
// quest:rms.
NIBBLE_HD float quest_spread(const float* x, float amax, bool about_mean) {
    // Huge values are brought down by a power of two, so that their squares stay finite.
    const int exponent = amax >= 0x1p60f ? exponent_of(amax) : 0;
    const float unit = power_of_two(-exponent);
    float first[kMxfp4Block], second[kMxfp4Block];
    for (int i = 0; i < kMxfp4Block; ++i) {
        first[i] = x[i] * unit;
        second[i] = first[i] * first[i];
    }
    float square = tree_sum(second, kMxfp4Block) / kMxfp4Block;
    if (about_mean) {
        const float mean = tree_sum(first, kMxfp4Block) / kMxfp4Block;
        square = std::fmax(square - mean * mean, 0.0f);
    }
    return std::sqrt(square) * power_of_two(exponent);
}
NIBBLE_HD uint8_t mxfp4_quest(float spread, float mult) {
    const float constant = 2.92247856f / 6.0f * mult;
    return mxfp4_byte(exponent_of(constant * spread + 1e-8f));
}

// What elements are multiplied by before they are rounded: 1 / scale, exact.
NIBBLE_HD float mxfp4_element_factor(uint8_t byte) { return power_of_two(127 - byte); }

// The operand of a product, code * scale: exact in FP32 and in BF16.
NIBBLE_HD float mxfp4_operand(uint8_t code, uint8_t byte) { return e2m1_decode(code) * e8m0_decode(byte); }

}  // namespace nibble
