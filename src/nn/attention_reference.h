// Causal attention, readable: what attention.cpp computes, one row of scores after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nn/attention.h"
#include "nn/element.h"

namespace nibble::reference {

// Where the heads of a row of qkv begin.
struct QkvRow {
    int64_t width = 0, head_dim = 0;
    int heads = 0, kv_heads = 0;

    explicit QkvRow(const AttentionShape& s)
        : width((s.heads + 2 * int64_t{s.kv_heads}) * s.head_dim),
          head_dim(s.head_dim),
          heads(s.heads),
          kv_heads(s.kv_heads) {}
    int64_t q(int64_t row, int h) const { return row * width + h * head_dim; }
    int64_t k(int64_t row, int h) const { return row * width + (heads + h / (heads / kv_heads)) * head_dim; }
    int64_t v(int64_t row, int h) const { return k(row, h) + kv_heads * head_dim; }
};

template <typename Real, typename Element>
Real dot(const Element* a, const Element* b, int64_t count) {
    Real sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += load_as<Real>(a[i]) * load_as<Real>(b[i]);
    return sum;
}

template <typename Real, typename Element>
void attention_forward(const AttentionShape& s, int64_t rows, const Element* qkv, Element* out,
                       Real* logsumexp) {
    const QkvRow at(s);
    const Real scale = 1 / std::sqrt(static_cast<Real>(s.head_dim));
    std::vector<Real> p(static_cast<size_t>(s.sequence)), sum(static_cast<size_t>(s.head_dim));
    for (int64_t t = 0; t < rows; ++t) {
        const int64_t first = t - t % s.sequence;
        for (int h = 0; h < s.heads; ++h) {
            Real largest = -INFINITY, total = 0;
            for (int64_t j = first; j <= t; ++j) {
                p[j - first] = scale * dot<Real>(qkv + at.q(t, h), qkv + at.k(j, h), s.head_dim);
                largest = std::max(largest, p[j - first]);
            }
            for (int64_t j = first; j <= t; ++j) total += p[j - first] = std::exp(p[j - first] - largest);
            logsumexp[t * s.heads + h] = largest + std::log(total);
            std::fill(sum.begin(), sum.end(), Real{0});
            for (int64_t j = first; j <= t; ++j) {
                for (int64_t d = 0; d < s.head_dim; ++d) {
                    sum[d] += p[j - first] / total * load_as<Real>(qkv[at.v(j, h) + d]);
                }
            }
            for (int64_t d = 0; d < s.head_dim; ++d) {
                out[(t * s.heads + h) * s.head_dim + d] = store_as<Element>(sum[d]);
            }
        }
    }
}

// With p = exp(scale * q·k - logsumexp) and dp = dout·v:  dv += p dout,  ds = p (dp - dout·out),
// dq += scale ds k,  dk += scale ds q.
template <typename Real, typename Element>
void attention_backward(const AttentionShape& s, int64_t rows, const Element* dout, const Element* qkv,
                        const Element* out, const Real* logsumexp, Element* dqkv) {
    const QkvRow at(s);
    const Real scale = 1 / std::sqrt(static_cast<Real>(s.head_dim));
    std::vector<Real> gradient(static_cast<size_t>(rows * at.width), Real{0});
    for (int64_t t = 0; t < rows; ++t) {
        for (int h = 0; h < s.heads; ++h) {
            const Element* d = dout + (t * s.heads + h) * s.head_dim;
            const Real delta = dot<Real>(d, out + (t * s.heads + h) * s.head_dim, s.head_dim);
            for (int64_t j = t - t % s.sequence; j <= t; ++j) {
                const Real score = scale * dot<Real>(qkv + at.q(t, h), qkv + at.k(j, h), s.head_dim);
                const Real p = std::exp(score - logsumexp[t * s.heads + h]);
                const Real ds = p * (dot<Real>(d, qkv + at.v(j, h), s.head_dim) - delta);
                for (int64_t i = 0; i < s.head_dim; ++i) {
                    gradient[at.v(j, h) + i] += p * load_as<Real>(d[i]);
                    gradient[at.q(t, h) + i] += scale * ds * load_as<Real>(qkv[at.k(j, h) + i]);
                    gradient[at.k(j, h) + i] += scale * ds * load_as<Real>(qkv[at.q(t, h) + i]);
                }
            }
        }
    }
    for (size_t i = 0; i < gradient.size(); ++i) dqkv[i] = store_as<Element>(gradient[i]);
}

}  // namespace nibble::reference
