#include "optim/clip.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/cuda.h"
#include "optim/cuda_forms.h"

namespace nibble {

namespace {

constexpr int64_t kChunk = 16384;  // elements

int64_t chunks_of(const Tensor& tensor) { return (tensor.count() + kChunk - 1) / kChunk; }

// Eight partial sums, whatever the width of the machine's vectors.
template <typename Element>
double sum_of_squares(const Element* x, int64_t count) {
    std::array<double, 8> sums{};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (size_t lane = 0; lane < 8; ++lane) {
            const double value = to_float(x[i + static_cast<int64_t>(lane)]);
            sums[lane] += value * value;
        }
    }
    double sum = 0;
    for (double lane_sum : sums) sum += lane_sum;
    for (; i < count; ++i) sum += double{to_float(x[i])} * double{to_float(x[i])};
    return sum;
}

}  // namespace

GradientNorm global_norm(Context& context, std::span<const Tensor> gradients) {
    NIBBLE_ON_CUDA(context, global_norm(context, gradients));
    int64_t most_chunks = 0;
    for (const Tensor& gradient : gradients) most_chunks = std::max(most_chunks, chunks_of(gradient));
    const ArenaScope scope(context.arena);
    const Tensor partial_sums = context.arena.allocate(DType::f64, {most_chunks});
    GradientNorm result;
    if (context.planning()) return result;

    auto* partial = partial_sums.as<double>();
    double total = 0;
    for (size_t t = 0; t < gradients.size(); ++t) {
        const int64_t count = gradients[t].count(), chunks = chunks_of(gradients[t]);
        with_elements(gradients[t], [&](const auto* x) {
            parallel_for(chunks, 1, [&](int64_t first, int64_t last) {
                for (int64_t c = first; c < last; ++c) {
                    partial[c] = sum_of_squares(x + c * kChunk, std::min(kChunk, count - c * kChunk));
                }
            });
        });
        double sum = 0;
        for (int64_t c = 0; c < chunks; ++c) sum += partial[c];
        // Squares of finite floats cannot overflow a double, so only a NaN or an infinity gets here.
        if (!std::isfinite(sum) && result.first_non_finite < 0)
            result.first_non_finite = static_cast<int64_t>(t);
        total += sum;
    }
    result.norm = std::sqrt(total);
    return result;
}

double clip_factor(double norm, double limit) {
    if (!(limit >= 0)) fail_usage("the limit of the gradient norm must not be negative, but is {}", limit);
    return limit > 0 && norm > limit ? limit / norm : 1.0;
}

}  // namespace nibble
