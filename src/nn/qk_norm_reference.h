// One head of a query or key through its norm and back, readable: what qk_norm.cpp computes for all.
#pragma once

#include <cmath>
#include <cstdint>

#include "nn/element.h"

namespace nibble::reference {

// Returns 1 / sqrt(mean(h²) + eps). y may be h itself.
template <typename Real, typename Element>
Real head_norm(int64_t size, const Element* h, const float* weight, Real eps, Element* y) {
    Real sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += load_as<Real>(h[i]) * load_as<Real>(h[i]);
    const Real rstd = 1 / std::sqrt(sum / static_cast<Real>(size) + eps);
    for (int64_t i = 0; i < size; ++i) y[i] = store_as<Element>(load_as<Real>(h[i]) * rstd * weight[i]);
    return rstd;
}

// d: the gradient of y on the way in, of h on the way out. dweight is accumulated.
template <typename Real, typename Element>
void head_norm_backward(int64_t size, const Element* h, const float* weight, Real rstd, Element* d,
                        Real* dweight) {
    Real mean = 0;
    for (int64_t i = 0; i < size; ++i) {
        const Real normed = load_as<Real>(h[i]) * rstd;
        mean += load_as<Real>(d[i]) * weight[i] * normed / static_cast<Real>(size);
        dweight[i] += load_as<Real>(d[i]) * normed;
    }
    for (int64_t i = 0; i < size; ++i) {
        const Real normed = load_as<Real>(h[i]) * rstd;
        d[i] = store_as<Element>(rstd * (load_as<Real>(d[i]) * weight[i] - normed * mean));
    }
}

}  // namespace nibble::reference
