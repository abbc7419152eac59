#include "study/bias_study.h"

#include <algorithm>

namespace nibble {

namespace {

constexpr int64_t kChunk = kTokensOfChunk;
constexpr float kMassive = 100.0f;  // massive_token
constexpr int64_t kSeen = 37;       // the token of a chunk that dy sees, massive_token

void scale_row(const Tensor& t, int64_t row, float factor) {
    float* values = t.as<float>() + row * t.cols();
    for (int64_t c = 0; c < t.cols(); ++c) values[c] *= factor;
}

double squared(double x) { return x * x; }

Distribution distribution_of(BiasData kind) {
    switch (kind) {
        case BiasData::laplace:
            return Distribution::laplace;
        case BiasData::student_t5:
            return Distribution::student_t5;
        case BiasData::student_t2:
            return Distribution::student_t2;
        default:
            return Distribution::normal;
    }
}

}  // namespace

LayerData bias_data(BiasData kind, int64_t tokens, int64_t in, int64_t out, uint64_t seed,
                    std::span<const int64_t> active) {
    LayerData data = random_layer(tokens, in, out, distribution_of(kind), seed);
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t place = t % kChunk;
        const bool is_active = std::find(active.begin(), active.end(), place) != active.end();
        if (kind == BiasData::few_tokens && !is_active) scale_row(data.dy.tensor(), t, 0);
        if (kind == BiasData::massive_token && place != kSeen) scale_row(data.dy.tensor(), t, 0);
        if (kind == BiasData::massive_token && place == 0) scale_row(data.x.tensor(), t, kMassive);
    }
    return data;
}

double BiasCurve::excess() const { return error.back() * draws.back() / error.front(); }

double BiasCurve::bias() const {
    const double share = 1.0 / draws.back();
    return std::max(0.0, (error.back() - error.front() * share) / (1 - share));
}

bool has_random_gradient(const Recipe& recipe) {
    const bool reads_forward = recipe.wgrad_x.source != Source::original;
    return is_random(recipe.wgrad_dy.spec) || is_random(recipe.wgrad_x.spec) ||
           (reads_forward && is_random(recipe.fprop_x.spec));
}

BiasCurve averaged_gradient(const Recipe& recipe, const LayerData& data, int draws, uint64_t seed) {
    require(draws >= 2, "an average needs two draws or more, not {}", draws);
    const Recipe plain = with_unquantized_backward(recipe);
    const bool target_moves = plain.wgrad_x.source == Source::forward && is_random(recipe.fprop_x.spec);

    const auto dw_of = [&](const Recipe& of, int draw) {
        return run_layer(of, data, seed, static_cast<uint32_t>(draw)).dw;
    };
    std::vector<float> target = dw_of(plain, 1);
    require(std::any_of(target.begin(), target.end(), [](float x) { return x != 0; }),
            "the gradient of this data is zero; take {} tokens or more", kChunk);
    BiasCurve curve;
    std::vector<double> sum(target.size()), target_sum(target.size()), mean(target.size());
    for (int draw = 1, next = 1; draw <= draws; ++draw) {
        const std::vector<float> dw = dw_of(recipe, draw);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{dw[i]};
        if (target_moves) {
            const std::vector<float> moved = dw_of(plain, draw);
            for (size_t i = 0; i < sum.size(); ++i) {
                target_sum[i] += double{moved[i]};
                target[i] = static_cast<float>(target_sum[i] / draw);
            }
        }
        if (draw != next && draw != draws) continue;
        for (size_t i = 0; i < sum.size(); ++i) mean[i] = sum[i] / draw;
        curve.draws.push_back(draw);
        curve.error.push_back(squared(relative_error(mean, target)));
        next *= 4;
    }
    return curve;
}

}  // namespace nibble
