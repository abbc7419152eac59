#include "optim/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble {
namespace {

GradientNorm norm_of(std::vector<std::vector<float>>& gradients) {
    std::vector<Tensor> tensors;
    for (auto& gradient : gradients)
        tensors.push_back(view_of(gradient, {static_cast<int64_t>(gradient.size())}));
    Arena arena(1 << 16);
    Context context{arena};
    return global_norm(context, tensors);
}

TEST(GlobalNorm, IsEuclideanOverAllTensors) {
    std::vector<std::vector<float>> gradients = {{3.0f}, {0.0f, 4.0f}, {}, {12.0f}};
    EXPECT_DOUBLE_EQ(norm_of(gradients).norm, 13.0);
    EXPECT_EQ(norm_of(gradients).first_non_finite, -1);
}

TEST(GlobalNorm, KeepsSmallElementsBesideManyOthers) {
    // 2^20 squares of 2^-10 beside one of 2^10: their sum, 1, would be lost in FP32 steps of 2^-3.
    std::vector<std::vector<float>> gradients = {std::vector<float>((1 << 20) + 3, 0x1p-10f)};
    gradients[0][0] = 0x1p10f;
    const double expected = std::sqrt(0x1p20 + ((1 << 20) + 2) * 0x1p-20);
    EXPECT_DOUBLE_EQ(norm_of(gradients).norm, expected);
}

TEST(GlobalNorm, DoesNotDependOnTheNumberOfThreads) {
    std::vector<std::vector<float>> gradients(2);
    for (int i = 0; i < 100'000; ++i) {
        gradients[0].push_back(std::sin(static_cast<float>(i)));
        gradients[1].push_back(1e-4f * std::cos(static_cast<float>(i)));
    }
    const int threads = thread_count();
    const double expected = norm_of(gradients).norm;
    for (int n : {1, 2, 3, 5}) {
        set_thread_count(n);
        EXPECT_EQ(norm_of(gradients).norm, expected) << n << " threads";
    }
    set_thread_count(threads);
}

TEST(GlobalNorm, NamesTheFirstTensorThatIsNotFinite) {
    std::vector<std::vector<float>> gradients = {
        {1.0f}, {1.0f, 2.0f}, std::vector<float>(40'000, 1.0f), {1.0f}};
    gradients[2][39'999] = std::numeric_limits<float>::infinity();
    gradients[3][0] = std::numeric_limits<float>::quiet_NaN();
    const GradientNorm result = norm_of(gradients);
    EXPECT_EQ(result.first_non_finite, 2);
    EXPECT_FALSE(std::isfinite(result.norm));
}

TEST(GlobalNorm, LargeFiniteGradientsAreFinite) {
    std::vector<std::vector<float>> gradients = {{std::numeric_limits<float>::max(), 1.0f}};
    EXPECT_EQ(norm_of(gradients).first_non_finite, -1);
    EXPECT_DOUBLE_EQ(norm_of(gradients).norm, double{std::numeric_limits<float>::max()});
}

TEST(GlobalNorm, PlansItsScratch) {
    std::vector<float> gradient(100'000, 1.0f);
    const std::vector<Tensor> tensors = {view_of(gradient, {100'000})};
    Arena arena;
    Context context{arena};
    EXPECT_EQ(global_norm(context, tensors).norm, 0.0);
    arena.commit();
    EXPECT_DOUBLE_EQ(global_norm(context, tensors).norm, std::sqrt(1e5));
}

TEST(ClipFactor, BringsANormTenTimesTheLimitToTheLimit) {
    EXPECT_DOUBLE_EQ(clip_factor(10.0, 1.0), 0.1);
    EXPECT_DOUBLE_EQ(clip_factor(5.0, 0.5) * 5.0, 0.5);
}

TEST(ClipFactor, LeavesSmallNormsAlone) {
    EXPECT_EQ(clip_factor(0.99, 1.0), 1.0);
    EXPECT_EQ(clip_factor(1.0, 1.0), 1.0);
    EXPECT_EQ(clip_factor(0.0, 1.0), 1.0);
}

TEST(ClipFactor, LimitZeroMeansNoClipping) { EXPECT_EQ(clip_factor(1e9, 0.0), 1.0); }

TEST(ClipFactor, RefusesANegativeLimit) { EXPECT_THROW(clip_factor(1.0, -1.0), UsageError); }

}  // namespace
}  // namespace nibble
