// Philox4x32-10: 128 random bits for a 64-bit key and a 128-bit counter, without state.
// Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
#pragma once

#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

struct Philox {
    uint32_t word[4];

    // Eight 16-bit coins; the low half of each word comes first.
    NIBBLE_HD uint16_t coin(int index) const {
        return static_cast<uint16_t>(word[index >> 1] >> (16 * (index & 1)));
    }
};

NIBBLE_HD Philox philox4x32_10(uint64_t key, const uint32_t (&counter)[4]) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(0xd2511f53u) * c0;
        const uint64_t p1 = static_cast<uint64_t>(0xcd9e8d57u) * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// What a random number is for. Part of the counter, so that no two uses share one.
// Published in docs/numerics.md; a change needs a new checkpoint version.
enum class Purpose : uint8_t {
    elements = 0,        // stochastic rounding of elements
    scales = 1,          // stochastic rounding of scales
    signs = 2,           // rotation signs
    initialization = 3,  // weights
    data_order = 4,      // which windows a batch holds
    sampling = 5,        // generation of text
    resampling = 6,      // bootstrap of a study; not a part of training
    moments = 7,         // stochastic rounding of the optimizer's moments
};

// The counter of docs/numerics.md, section 6: { i low, i high (24 bits) | purpose << 24, step,
// layer << 16 | micro-step << 8 | operand }, operand = gemm * 2 + side.
NIBBLE_HD Philox philox_draw(uint64_t seed, Purpose purpose, uint64_t i, uint32_t step = 0,
                             uint16_t layer = 0, uint8_t micro_step = 0, uint8_t operand = 0) {
    const uint32_t counter[4] = {
        static_cast<uint32_t>(i),
        (static_cast<uint32_t>(i >> 32) & 0xffffffu) | static_cast<uint32_t>(purpose) << 24,
        step,
        static_cast<uint32_t>(layer) << 16 | static_cast<uint32_t>(micro_step) << 8 | operand,
    };
    return philox4x32_10(seed, counter);
}

}  // namespace nibble
