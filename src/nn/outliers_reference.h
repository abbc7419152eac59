// What outliers.h does to one element, the same on every device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/bf16.h"
#include "numerics/host_device.h"

namespace nibble {

// Unsigned numbers in the order of the floats that they stand for; NaNs at both ends.
NIBBLE_HD uint32_t ordered_key(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
// The upper half says all of a BF16: the lower one is 0, or all ones for a negative number.
NIBBLE_HD uint32_t ordered_key(Bf16 x) { return ordered_key(bf16_decode(x)); }
NIBBLE_HD float from_ordered_key(uint32_t key) {
    return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Nearly every element is inside, so loops ask this first.
NIBBLE_HD bool is_inside(float x, float low, float high) { return x >= low && x <= high; }

NIBBLE_HD float clamped(float x, float low, float high) {
    if (!std::isfinite(x)) return x;
    return x < low ? low : x > high ? high : x;
}

}  // namespace nibble
