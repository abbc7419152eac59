// MXFP8, one block at a time: E4M3 or E5M2 elements and an E8M0 scale, a power of two, for 32 of them. The
// rules of docs/numerics.md, section 4, as mxfp4.h has them for E2M1.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/e8m0.h"
#include "numerics/elements.h"
#include "numerics/host_device.h"
#include "numerics/mxfp4.h"

namespace nibble {

// What a block's elements fix: the exponent of the largest, 448 or 57344, the bits of its mantissa, and the
// scales between which code * scale is exact in BF16.
struct Mxfp8Rule {
    float largest;
    int exponent, mantissa_bits, least_scale, largest_scale;
};
NIBBLE_HD Mxfp8Rule mxfp8_rule(Element element) {
    if (element == Element::e5m2) return {57344.0f, 15, 2, -117, 112};
    return {448.0f, 8, 3, -124, 119};
}

// The byte of 2^exponent, clamped; 0 for a block of zeros.
NIBBLE_HD uint8_t mxfp8_byte(const Mxfp8Rule& rule, float amax, int exponent) {
    if (amax == 0.0f) return 0;
    const int clamped = exponent < rule.least_scale     ? rule.least_scale
                        : exponent > rule.largest_scale ? rule.largest_scale
                                                        : exponent;
    return static_cast<uint8_t>(clamped + 127);
}

NIBBLE_HD uint8_t mxfp8_floor(const Mxfp8Rule& rule, float amax) {
    return mxfp8_byte(rule, amax, exponent_of(amax) - rule.exponent);
}
NIBBLE_HD uint8_t mxfp8_ceil(const Mxfp8Rule& rule, float amax) {
    return mxfp8_byte(rule, amax, exponent_of(amax) - rule.exponent + has_mantissa(amax));
}
// scale=rceil, as TransformerEngine: amax over the largest element, rounded up; nothing clips.
NIBBLE_HD uint8_t mxfp8_rceil(const Mxfp8Rule& rule, float amax) {
    const float v = amax * (1.0f / rule.largest);
    return mxfp8_byte(rule, amax, exponent_of(v) + has_mantissa(v));
}
NIBBLE_HD uint8_t mxfp8_even(const Mxfp8Rule& rule, float amax) {
    const uint32_t half_a_step = 1u << (22 - rule.mantissa_bits);
    return mxfp8_byte(
        rule, amax,
        exponent_of(std::bit_cast<float>((std::bit_cast<uint32_t>(amax) + half_a_step) & 0xff800000u)) -
            rule.exponent);
}

}  // namespace nibble
