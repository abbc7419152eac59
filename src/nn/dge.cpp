#include "nn/dge.h"

#include <algorithm>
#include <cmath>

namespace nibble {

namespace {

constexpr float kLargest = 6.0f;  // of E2M1

// The interval between neighbouring codes that holds a magnitude in [0, 6]: [low, low + delta).
struct Interval {
    float low, delta;
};

Interval interval_of(float magnitude) {
    if (magnitude >= 4.0f) return {4.0f, 2.0f};
    if (magnitude >= 2.0f) return {std::floor(magnitude), 1.0f};
    return {0.5f * std::floor(2.0f * magnitude), 0.5f};
}

}  // namespace

double dge_surrogate(double x, double k) {
    const double magnitude = std::min(std::fabs(x), double{kLargest});
    const Interval i = interval_of(static_cast<float>(magnitude));
    const double place = 2 * (magnitude - i.low) / i.delta - 1;  // -1 at the lower code, 1 at the upper
    const double f = i.low + i.delta / 2 * (1 + std::copysign(std::pow(std::fabs(place), 1 / k), place));
    return std::copysign(f, x);
}

float dge_slope(float x, const Dge& dge) {
    const float magnitude = std::min(std::fabs(x), kLargest);
    const Interval i = interval_of(magnitude);
    const float place = std::fabs(2.0f * (magnitude - i.low) / i.delta - 1.0f);
    const auto k = static_cast<float>(dge.k);
    return std::min(std::pow(place, 1.0f / k - 1.0f) / k, static_cast<float>(dge.cap));
}

void multiply_by_dge_slope(Context& context, const Dge& dge, const Tensor& w, const Tensor& gradient) {
    require(w.rows() == gradient.rows() && w.cols() <= gradient.cols(),
            "a gradient {} is not that of a weight {}", gradient.shape.str(), w.shape.str());
    if (context.planning()) return;
    const int64_t cols = w.cols(), stride = gradient.cols();
    const float* const weights = w.as<float>();
    float* const g = gradient.as<float>();
    constexpr int64_t kGrain = 1 << 12;  // elements: a power is slow
    parallel_for(w.rows(), rows_per_task(cols, kGrain), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* const row = weights + r * cols;
            float amax = 0.0f;
            for (int64_t c = 0; c < cols; ++c) amax = std::max(amax, std::fabs(row[c]));
            if (amax == 0.0f) amax = 1.0f;
            for (int64_t c = 0; c < cols; ++c)
                g[r * stride + c] *= dge_slope(kLargest * (row[c] / amax), dge);
        }
    });
}

}  // namespace nibble
