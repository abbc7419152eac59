#include "nn/smooth_swiglu.h"

#include <gtest/gtest.h>

#include <cmath>

#include "transformer_fixture.h"

namespace nibble {
namespace {

using namespace testing_models;

std::vector<float> scales_of(const SmoothSwiglu& options, std::vector<float> h, int64_t channels) {
    std::vector<float> scales(static_cast<size_t>(channels));
    Arena arena(64);
    Context context{arena};
    channel_scales(context, options, view_of(h, {static_cast<int64_t>(h.size()) / channels, channels}),
                   view_of(scales, {channels}));
    return scales;
}

TEST(SmoothSwiglu, BringsChannelsToOneMagnitude) {
    // Largest magnitudes 8, 1, 3, 0 and 1e-9.
    const std::vector<float> h = {1.0f, -1.0f, 3.0f, 0.0f, 1e-9f, -8.0f, 0.5f, 2.0f, 0.0f, 0.0f};
    EXPECT_EQ(scales_of({}, h, 5), (std::vector<float>{1, 8, 2, 1, 65536}));
    EXPECT_EQ(scales_of({.scale = "exact"}, h, 5), (std::vector<float>{1, 8, 8.0f / 3, 1, 65536}));
    EXPECT_EQ(scales_of({.strength = 0.5}, h, 5), (std::vector<float>{1, 2, 1, 1, 256}));
    EXPECT_EQ(scales_of({.strength = 0}, h, 5), (std::vector<float>{1, 1, 1, 1, 1}));
}

struct Step {
    double loss, evaluated;
    std::vector<float> gradients;
};

// One micro-batch of a model in which some channels of each SwiGLU are far larger than the others.
Step step(const Recipe& recipe, DType activations) {
    Transformer model(small_config(), recipe, {.activations = activations});
    model.initialize(1);
    for (const char* name : {"layers.0.mlp.gate_up", "layers.1.mlp.gate_up"}) {
        const Tensor& w = model.parameter(name).master;
        for (int64_t r = 0; r < w.rows(); ++r)
            for (int64_t k = 0; k < w.cols(); ++k)
                w.as<float>()[r * w.cols() + k] *= r % 7 == 0 ? 8.0f : 1.0f;
    }
    Batch batch(2, 16, 64, 8);
    Session session;
    model.begin_step(session.context);
    Step result{};
    result.evaluated = model.forward(session.context, batch.tokens(), batch.targets()).loss_sum;
    result.loss = model.forward_backward(session.context, batch.tokens(), batch.targets(), 1.0f).loss_sum;
    for (const Parameter& p : model.parameters()) {
        const auto gradient = p.gradient.span<const float>();
        result.gradients.insert(result.gradients.end(), gradient.begin(), gradient.end());
    }
    return result;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0, power = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        error += std::pow(double{a[i]} - b[i], 2);
        power += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(error / power);
}

// Powers of two go through products and BF16 without a trace.
TEST(SmoothSwiglu, L20_ChangesNoBitWhereNothingIsQuantised) {
    const Recipe bf16 = find_recipe("bf16");
    const Step plain = step(bf16, DType::bf16),
               smooth = step(with_modifiers(bf16, {"smooth-swiglu"}), DType::bf16);
    EXPECT_EQ(smooth.loss, plain.loss);
    EXPECT_EQ(smooth.evaluated, plain.evaluated);
    EXPECT_EQ(smooth.gradients, plain.gradients);
}

TEST(SmoothSwiglu, L20_WithExactScalesChangesNothingBeyondRounding) {
    const Step plain = step(fp32_recipe(), DType::f32);
    const Step smooth = step(with_modifiers(fp32_recipe(), {"smooth-swiglu scale=exact"}), DType::f32);
    EXPECT_NEAR(smooth.loss, plain.loss, 1e-5 * plain.loss);
    EXPECT_LT(relative_error(smooth.gradients, plain.gradients), 1e-5);
    EXPECT_NE(smooth.gradients, plain.gradients);  // it did something
}

TEST(SmoothSwiglu, LeavesGradientsThatAreAsNearToTheExactOnes) {
    const Step exact = step(fp32_recipe(), DType::f32);
    for (const char* name : {"quartet2", "nvidia", "fp4-all-the-way", "fp4-all-the-way-qaf"}) {
        Recipe recipe = find_recipe(name);
        recipe.keep_last = 0;
        const double plain = relative_error(step(recipe, DType::bf16).gradients, exact.gradients);
        const Step smooth = step(with_modifiers(recipe, {"smooth-swiglu"}), DType::bf16);
        EXPECT_NE(smooth.loss, step(recipe, DType::bf16).loss) << name;
        EXPECT_EQ(smooth.loss, smooth.evaluated) << name;
        EXPECT_LT(relative_error(smooth.gradients, exact.gradients), 1.1 * plain) << name;
    }
}

TEST(SmoothSwiglu, LeavesKeptBlocksAlone) {
    Recipe recipe = find_recipe("quartet2");
    recipe.keep_first = 2;
    EXPECT_EQ(step(with_modifiers(recipe, {"smooth-swiglu"}), DType::bf16).gradients,
              step(recipe, DType::bf16).gradients);
}

}  // namespace
}  // namespace nibble
