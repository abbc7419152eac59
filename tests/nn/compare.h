// Comparing gradients with finite differences, and fast functions with their readable references.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "gemm/test_tensors.h"

namespace nibble {

inline std::vector<double> random_doubles(uint64_t seed, int64_t count) {
    const auto values = random_values(seed, count);
    return {values.begin(), values.end()};
}

// df/dx[i] by central differences.
template <typename F>
std::vector<double> finite_differences(std::vector<double>& x, F&& f) {
    constexpr double kStep = 1e-5;
    std::vector<double> gradient;
    for (double& v : x) {
        const double at = v;
        v = at + kStep;
        const double above = f();
        v = at - kStep;
        const double below = f();
        v = at;
        gradient.push_back((above - below) / (2 * kStep));
    }
    return gradient;
}

inline double weighted_sum(const std::vector<double>& weights, const std::vector<double>& y) {
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += weights[i] * y[i];
    return sum;
}

// |got - expected| <= absolute + relative * |expected|, for every element.
inline void expect_close(const std::vector<double>& got, const std::vector<double>& expected, double relative,
                         double absolute, std::string_view what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], absolute + relative * std::fabs(expected[i])) << what << " at " << i;
    }
}

inline double largest(const std::vector<double>& values) {
    double most = 0;
    for (const double v : values) most = std::max(most, std::fabs(v));
    return most;
}

// The tolerance of one rounding to the dtype, where the sum before it may differ by FP32 rounding: relative.
inline double rounding_of(DType dtype) { return dtype == DType::bf16 ? 1.0 / 128 : 4e-6; }

template <typename Element>
std::vector<double> to_doubles(const std::vector<Element>& values) {
    std::vector<double> out;
    for (const Element v : values) {
        if constexpr (std::is_same_v<Element, Bf16>) {
            out.push_back(bf16_decode(v));
        } else {
            out.push_back(static_cast<double>(v));
        }
    }
    return out;
}

// The elements of a tensor, for the references.
template <typename Element>
std::vector<Element> elements_of(const Tensor& t) {
    const auto span = t.span<Element>();
    return {span.begin(), span.end()};
}

}  // namespace nibble
