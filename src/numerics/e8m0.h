// E8M0, the scale byte of MXFP4: a power of two, 2^(byte - 127), bytes 0..254.
// Source: OCP Microscaling Formats v1.0, section 5.4.1.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

NIBBLE_HD float e8m0_decode(uint8_t byte) {
    if (byte == 0) return 0x1p-127f;
    return std::bit_cast<float>(static_cast<uint32_t>(byte) << 23);
}

// Unbiased exponent of a positive FP32 number: floor(log2(x)). Subnormals give -127 (all are below 2^-126).
NIBBLE_HD int exponent_of(float x) {
    return static_cast<int>((std::bit_cast<uint32_t>(x) >> 23) & 0xffu) - 127;
}

// 2^exponent as an FP32 number, for -127 <= exponent <= 127.
NIBBLE_HD float power_of_two(int exponent) { return e8m0_decode(static_cast<uint8_t>(exponent + 127)); }

}  // namespace nibble
