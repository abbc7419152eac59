// Rotary position embedding, readable: what rope.cpp computes, one pair after the other.
#pragma once

#include <cstdint>

#include "nn/element.h"
#include "nn/rope.h"

namespace nibble::reference {

// Rotates `heads` heads of one row by the angles of its position; direction -1 is the inverse rotation.
template <typename Real, typename Element>
void rope_row(RopeLayout layout, int heads, int head_dim, const Real* cos, const Real* sin, int direction,
              Element* row) {
    const int half = head_dim / 2;
    for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < half; ++i) {
            Element& first = row[h * head_dim + (layout == RopeLayout::interleaved ? 2 * i : i)];
            Element& second = row[h * head_dim + (layout == RopeLayout::interleaved ? 2 * i + 1 : i + half)];
            const Real a = load_as<Real>(first), b = load_as<Real>(second);
            const Real s = static_cast<Real>(direction) * sin[i];
            first = store_as<Element>(a * cos[i] - b * s);
            second = store_as<Element>(b * cos[i] + a * s);
        }
    }
}

}  // namespace nibble::reference
