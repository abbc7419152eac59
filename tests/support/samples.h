// Random test data by counter (study/samples.h).
#pragma once

#include <vector>

#include "numerics/bf16.h"
#include "study/samples.h"

namespace nibble::test {

using nibble::Distribution;

inline Philox draw_for_test(uint64_t seed, uint64_t i, uint32_t lane = 0) {
    return detail::sample_draw(seed, i, lane);
}
inline std::vector<float> samples(Distribution distribution, int64_t count, uint64_t seed) {
    return random_samples(distribution, count, seed);
}
inline std::vector<float> normals(int64_t count, uint64_t seed = 1) {
    return random_samples(Distribution::normal, count, seed);
}

}  // namespace nibble::test
