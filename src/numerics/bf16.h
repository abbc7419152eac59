// BF16: the upper half of an FP32 number.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

struct Bf16 {
    uint16_t bits;
    friend bool operator==(Bf16, Bf16) = default;
};

NIBBLE_HD float bf16_decode(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even. Overflow gives infinity; a NaN stays a (quiet) NaN.
NIBBLE_HD Bf16 bf16_encode(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// A stored number, FP32 or BF16.
NIBBLE_HD float to_float(float x) { return x; }
NIBBLE_HD float to_float(Bf16 x) { return bf16_decode(x); }

NIBBLE_HD float round_to_bf16(float x) { return bf16_decode(bf16_encode(x)); }

}  // namespace nibble
