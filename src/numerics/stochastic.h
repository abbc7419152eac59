// The coin of stochastic rounding (docs/numerics.md, section 2).
#pragma once

#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

// True if a value a fraction f in (0, 1) of the way from its lower to its upper neighbour goes up:
// f > (u + 1/2) / 65536. Both sides are exact in FP32.
NIBBLE_HD bool rounds_up(float fraction, uint16_t coin) {
    return fraction > (static_cast<float>(coin) + 0.5f) * (1.0f / 65536.0f);
}

}  // namespace nibble
