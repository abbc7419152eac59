#include "optim/clip.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

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
    const ArenaScope scope(context.arena);
    const Tensor result = context.arena.allocate(DType::f64, {2});
    global_norm(context, gradients, result);
    return context.planning() ? GradientNorm{} : read_norm(context, result);
}

void global_norm(Context& context, std::span<const Tensor> gradients, const Tensor& result) {
    NIBBLE_ON_CUDA(context, global_norm(context, gradients, result));
    int64_t most_chunks = 0;
    for (const Tensor& gradient : gradients) most_chunks = std::max(most_chunks, chunks_of(gradient));
    const ArenaScope scope(context.arena);
    const Tensor partial_sums = context.arena.allocate(DType::f64, {most_chunks});
    if (context.planning()) return;

    auto* partial = partial_sums.as<double>();
    double total = 0, first_non_finite = -1;
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
        if (!std::isfinite(sum) && first_non_finite < 0) first_non_finite = static_cast<double>(t);
        total += sum;
    }
    auto* const to = result.as<double>();
    to[0] = std::sqrt(total);
    to[1] = first_non_finite;
}

GradientNorm read_norm(const Context& context, const Tensor& result) {
    std::vector<double> values(2);
    copy(context, result, view_of(values, {2}));
    return {values[0], static_cast<int64_t>(values[1])};
}

namespace {

void check_limit(double limit) {
    if (!(limit >= 0)) fail_usage("the limit of the gradient norm must not be negative, but is {}", limit);
}

}  // namespace

double clip_factor(double norm, double limit) {
    check_limit(limit);
    return limit > 0 && norm > limit ? limit / norm : 1.0;
}

void clip_factor(const Context& context, const Tensor& norm, const Tensor& losses, double limit,
                 const Tensor& factor) {
    if (context.planning()) return;
    check_limit(limit);
    NIBBLE_ON_CUDA(context, clip_factor(context, norm, losses, limit, factor));
    const double of_norm = *norm.as<double>();
    const bool is_finite = std::isfinite(of_norm) && std::isfinite(*losses.as<double>());
    *factor.as<float>() = is_finite ? static_cast<float>(clip_factor(of_norm, limit)) : NAN;
}

}  // namespace nibble
