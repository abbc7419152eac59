// RMSNorm, readable: what rmsnorm.cpp computes, one scalar after the other.
#pragma once

#include <cmath>
#include <cstdint>

#include "nn/element.h"

namespace nibble::reference {

template <typename Real, typename Element>
void rmsnorm_forward(int64_t rows, int64_t cols, const Element* x, const Element* delta, const Real* weight,
                     Real eps, Element* sum, Element* y, Real* rstd) {
    for (int64_t t = 0; t < rows; ++t) {
        const Element* normalised = x + t * cols;
        if (delta != nullptr) {
            for (int64_t c = t * cols; c < (t + 1) * cols; ++c) {
                sum[c] = store_as<Element>(load_as<Real>(x[c]) + load_as<Real>(delta[c]));
            }
            normalised = sum + t * cols;
        }
        Real squares = 0;
        for (int64_t c = 0; c < cols; ++c) {
            const Real v = load_as<Real>(normalised[c]);
            squares += v * v;
        }
        rstd[t] = 1 / std::sqrt(squares / static_cast<Real>(cols) + eps);
        for (int64_t c = 0; c < cols; ++c) {
            y[t * cols + c] = store_as<Element>(load_as<Real>(normalised[c]) * rstd[t] * weight[c]);
        }
    }
}

// With xhat = x * rstd and g = dy * weight: dx = d_sum + rstd * (g - xhat * mean(g * xhat)), dweight += dy *
// xhat.
template <typename Real, typename Element>
void rmsnorm_backward(int64_t rows, int64_t cols, const Element* dy, const Element* x, const Real* weight,
                      const Real* rstd, const Element* d_sum, Element* dx, Real* dweight) {
    for (int64_t t = 0; t < rows; ++t) {
        Real dot = 0;
        for (int64_t c = 0; c < cols; ++c) {
            dot += load_as<Real>(dy[t * cols + c]) * weight[c] * load_as<Real>(x[t * cols + c]) * rstd[t];
        }
        const Real mean = dot / static_cast<Real>(cols);
        for (int64_t c = 0; c < cols; ++c) {
            const int64_t i = t * cols + c;
            const Real xhat = load_as<Real>(x[i]) * rstd[t];
            const Real past = d_sum == nullptr ? Real{0} : load_as<Real>(d_sum[i]);
            const Real g = load_as<Real>(dy[i]);
            dx[i] = store_as<Element>(past + rstd[t] * (g * weight[c] - xhat * mean));
            dweight[c] += g * xhat;
        }
    }
}

}  // namespace nibble::reference
