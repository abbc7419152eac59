// SwiGLU, readable: what swiglu.cpp computes, one scalar after the other.
#pragma once

#include <cmath>
#include <cstdint>

#include "nn/element.h"

namespace nibble::reference {

template <typename Real, typename Element>
void swiglu_forward(int64_t rows, int64_t cols, const Element* gate_up, Element* h) {
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t c = 0; c < cols; ++c) {
            const Real gate = load_as<Real>(gate_up[2 * t * cols + c]);
            const Real up = load_as<Real>(gate_up[(2 * t + 1) * cols + c]);
            h[t * cols + c] = store_as<Element>(gate / (1 + std::exp(-gate)) * up);
        }
    }
}

// With s = sigmoid(gate): d silu(gate) = s * (1 + gate * (1 - s)).
template <typename Real, typename Element>
void swiglu_backward(int64_t rows, int64_t cols, const Element* dh, const Element* gate_up,
                     Element* dgate_up) {
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t c = 0; c < cols; ++c) {
            const int64_t at_gate = 2 * t * cols + c, at_up = at_gate + cols;
            const Real gate = load_as<Real>(gate_up[at_gate]), up = load_as<Real>(gate_up[at_up]);
            const Real gradient = load_as<Real>(dh[t * cols + c]);
            const Real s = 1 / (1 + std::exp(-gate));
            dgate_up[at_gate] = store_as<Element>(gradient * up * s * (1 + gate * (1 - s)));
            dgate_up[at_up] = store_as<Element>(gradient * gate * s);
        }
    }
}

}  // namespace nibble::reference
