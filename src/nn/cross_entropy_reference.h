// The LM head and its loss, readable: what cross_entropy.cpp computes, one token after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nn/cross_entropy.h"
#include "nn/element.h"

namespace nibble::reference {

// Loss of each token (0 where ignored), and, unless dx is null, the gradients of scale * their sum. rounds:
// logits are rounded to BF16.
template <typename Real, typename Element>
void head_loss(int64_t rows, int64_t cols, int64_t vocabulary, const Element* x, const Real* weight,
               const int32_t* targets, Real scale, Real* losses, Element* dx, Real* dweight,
               bool rounds = false) {
    std::vector<Real> p(static_cast<size_t>(vocabulary)), gradient(static_cast<size_t>(cols));
    for (int64_t t = 0; t < rows; ++t) {
        losses[t] = 0;
        std::fill(gradient.begin(), gradient.end(), Real{0});
        if (targets[t] != kIgnoredTarget) {
            Real largest = -INFINITY, total = 0;
            for (int64_t v = 0; v < vocabulary; ++v) {
                p[v] = 0;
                for (int64_t c = 0; c < cols; ++c)
                    p[v] += load_as<Real>(x[t * cols + c]) * weight[v * cols + c];
                if (rounds) p[v] = round_to_bf16(static_cast<float>(p[v]));
                largest = std::max(largest, p[v]);
            }
            const Real target_logit = p[targets[t]];
            for (int64_t v = 0; v < vocabulary; ++v) total += p[v] = std::exp(p[v] - largest);
            losses[t] = largest + std::log(total) - target_logit;
            for (int64_t v = 0; dx != nullptr && v < vocabulary; ++v) {
                const Real d = scale * (p[v] / total - (v == targets[t] ? 1 : 0));
                for (int64_t c = 0; c < cols; ++c) {
                    gradient[c] += d * weight[v * cols + c];
                    dweight[v * cols + c] += d * load_as<Real>(x[t * cols + c]);
                }
            }
        }
        for (int64_t c = 0; dx != nullptr && c < cols; ++c) dx[t * cols + c] = store_as<Element>(gradient[c]);
    }
}

}  // namespace nibble::reference
