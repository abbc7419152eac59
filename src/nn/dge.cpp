#include "nn/dge.h"

#include <algorithm>
#include <cmath>

#include "core/cuda.h"
#include "nn/cuda_forms.h"

namespace nibble {

DgeSlope dge_constants(const Dge& dge) {
    const auto k = static_cast<float>(dge.k);
    return {k, 1.0f / k - 1.0f, static_cast<float>(dge.cap)};
}

double dge_surrogate(double x, double k) {
    const double magnitude = std::min(std::fabs(x), double{kDgeLargest});
    const CodeInterval i = code_interval(static_cast<float>(magnitude));
    const double place = 2 * (magnitude - i.low) / i.delta - 1;  // -1 at the lower code, 1 at the upper
    const double f = i.low + i.delta / 2 * (1 + std::copysign(std::pow(std::fabs(place), 1 / k), place));
    return std::copysign(f, x);
}

float dge_slope(float x, const Dge& dge) { return dge_slope_reference(dge_constants(dge), x); }

void multiply_by_dge_slope(Context& context, const Dge& dge, const Tensor& w, const Tensor& gradient) {
    require(w.rows() == gradient.rows() && w.cols() <= gradient.cols(),
            "a gradient {} is not that of a weight {}", gradient.shape.str(), w.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, multiply_by_dge_slope(context, dge, w, gradient));
    const DgeSlope constants = dge_constants(dge);
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
                g[r * stride + c] *= dge_slope_reference(constants, kDgeLargest * (row[c] / amax));
        }
    });
}

}  // namespace nibble
