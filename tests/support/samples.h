// Random test data by counter: the i-th sample of a seed, whatever is drawn before it.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/philox.h"

namespace nibble::test {

enum class Distribution { normal, laplace, student_t5 };

// Uniform in (0, 1), from the word'th quarter of a draw.
inline double uniform(const Philox& draw, int word) { return (draw.word[word] + 0.5) * 0x1p-32; }

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

inline Philox draw_for_test(uint64_t seed, uint64_t i, uint32_t lane = 0) {
    const uint32_t counter[4] = {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), lane, 0};
    return philox4x32_10(seed, counter);
}

// `count` samples of unit variance.
inline std::vector<float> samples(Distribution distribution, int64_t count, uint64_t seed) {
    std::vector<float> x(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i += 4) {
        const Philox draw = draw_for_test(seed, static_cast<uint64_t>(i / 4));
        const Normals normals(draw);
        for (int j = 0; j < 4 && i + j < count; ++j) {
            double value = normals.value[j];
            if (distribution == Distribution::laplace) {
                const double u = uniform(draw, j) - 0.5;
                value = std::copysign(std::log(1.0 - 2.0 * std::fabs(u)), u) * -std::numbers::sqrt2 / 2.0;
            } else if (distribution == Distribution::student_t5) {
                // t = z / sqrt(chi² / 5), chi² the sum of five squares; its variance is 5/3.
                const Philox other =
                    draw_for_test(seed, static_cast<uint64_t>(i), static_cast<uint32_t>(j + 1));
                const Normals four(other);
                const Normals fifth(
                    draw_for_test(seed, static_cast<uint64_t>(i), static_cast<uint32_t>(j + 5)));
                double chi = fifth.value[0] * fifth.value[0];
                for (const double z : four.value) chi += z * z;
                value /= std::sqrt(chi / 5.0) * std::sqrt(5.0 / 3.0);
            }
            x[static_cast<size_t>(i + j)] = static_cast<float>(value);
        }
    }
    return x;
}

inline std::vector<float> normals(int64_t count, uint64_t seed = 1) {
    return samples(Distribution::normal, count, seed);
}

}  // namespace nibble::test
