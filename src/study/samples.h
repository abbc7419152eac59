// Random data by counter for studies and tests: the i-th sample of a seed, whatever is drawn before it.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "numerics/philox.h"

namespace nibble {

enum class Distribution { normal, laplace, student_t5, student_t2 };

namespace detail {

// Uniform in (0, 1), from the word'th quarter of a draw.
inline double uniform(const Philox& draw, int word) { return (draw.word[word] + 0.5) * 0x1p-32; }

inline Philox sample_draw(uint64_t seed, uint64_t i, uint32_t lane = 0) {
    const uint32_t counter[4] = {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), lane, 0};
    return philox4x32_10(seed, counter);
}

// Four independent N(0, 1) samples (Box and Muller).
struct Normals {
    double value[4];
    explicit Normals(const Philox& draw) {
        for (int pair = 0; pair < 2; ++pair) {
            const double radius = std::sqrt(-2.0 * std::log(uniform(draw, 2 * pair)));
            const double angle = 2.0 * std::numbers::pi * uniform(draw, 2 * pair + 1);
            value[2 * pair] = radius * std::cos(angle);
            value[2 * pair + 1] = radius * std::sin(angle);
        }
    }
};

// The sum of `count` squared N(0, 1) samples, at most eight.
inline double chi_squared(int count, uint64_t seed, uint64_t i, uint32_t lane) {
    const Normals first(sample_draw(seed, i, lane + 1)), second(sample_draw(seed, i, lane + 5));
    double sum = 0;
    for (int j = 0; j < count; ++j) {
        const double z = j < 4 ? first.value[j] : second.value[j - 4];
        sum += z * z;
    }
    return sum;
}

}  // namespace detail

// `count` independent samples: of unit variance, but for Student's t with 2 degrees of freedom, which has
// none.
inline std::vector<float> random_samples(Distribution distribution, int64_t count, uint64_t seed) {
    std::vector<float> x(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i += 4) {
        const Philox draw = detail::sample_draw(seed, static_cast<uint64_t>(i / 4));
        const detail::Normals normals(draw);
        for (int j = 0; j < 4 && i + j < count; ++j) {
            const auto lane = static_cast<uint32_t>(j);
            double value = normals.value[j];
            switch (distribution) {
                case Distribution::normal:
                    break;
                case Distribution::laplace: {
                    const double u = detail::uniform(draw, j) - 0.5;
                    value = std::copysign(std::log(1.0 - 2.0 * std::fabs(u)), u) * -std::numbers::sqrt2 / 2.0;
                    break;
                }
                case Distribution::student_t5:  // z / sqrt(chi² / 5); its variance is 5/3
                    value /= std::sqrt(detail::chi_squared(5, seed, static_cast<uint64_t>(i), lane) / 5.0) *
                             std::sqrt(5.0 / 3.0);
                    break;
                case Distribution::student_t2:
                    value /= std::sqrt(detail::chi_squared(2, seed, static_cast<uint64_t>(i), lane) / 2.0);
                    break;
            }
            x[static_cast<size_t>(i + j)] = static_cast<float>(value);
        }
    }
    return x;
}

}  // namespace nibble
