#include "study/bias_study.h"

#include <gtest/gtest.h>

#include "support/measured.h"

namespace nibble {
namespace {

constexpr int kDraws = 256;

BiasCurve curve_of(const Recipe& recipe, BiasData data) {
    return averaged_gradient(recipe, bias_data(data, 256, 64, 64), kDraws);
}
BiasCurve curve_of(const char* recipe, BiasData data) { return curve_of(find_recipe(recipe), data); }

TEST(AveragedGradient, OfNormalDataFallsAsOneOverDraws) {
    for (const char* recipe : {"quartet2", "quartet2-double", "tetrajet"}) {
        const BiasCurve curve = curve_of(recipe, BiasData::normal);
        EXPECT_EQ(curve.draws, (std::vector<int>{1, 4, 16, 64, 256}));
        EXPECT_NEAR(curve.excess(), 1.0, 0.35) << recipe;
    }
}

// A few tokens of a chunk become, after one rotation, rows of few magnitudes; MS-EDEN then keeps a bias
// (Quartet II notes, 2.4). A second rotation removes it.
TEST(AveragedGradient, OfOneRotationKeepsABiasWhereTokensAreFew) {
    EXPECT_GT(curve_of("quartet2", BiasData::few_tokens).excess(), 10);
    EXPECT_NEAR(curve_of("quartet2-double", BiasData::few_tokens).excess(), 1.0, 0.35);
}

// Tokens that are equal modulo 16 give groups of one magnitude: nothing is rounded unevenly.
TEST(AveragedGradient, OfOneRotationDependsOnWhichTokensAreActive) {
    const auto excess = [](std::vector<int64_t> active) {
        const LayerData data = bias_data(BiasData::few_tokens, 256, 64, 64, 1, active);
        return averaged_gradient(find_recipe("quartet2"), data, kDraws).excess();
    };
    EXPECT_NEAR(excess({5, 69}), 1.0, 0.5);
    EXPECT_NEAR(excess({5, 21}), 1.0, 0.5);
    EXPECT_GT(excess({5, 6}), 10);
    EXPECT_GT(excess({5, 40, 70, 99}), 5);
}

TEST(AveragedGradient, OfOneRotationIsFineOnLaplaceData) {
    EXPECT_NEAR(curve_of("quartet2", BiasData::laplace).excess(), 1.0, 0.35);
    EXPECT_NEAR(curve_of("quartet2", BiasData::student_t5).excess(), 1.0, 0.35);
}

TEST(AveragedGradient, OfOneRotationKeepsABiasBesideAMassiveToken) {
    const BiasCurve once = curve_of("quartet2", BiasData::massive_token);
    const BiasCurve twice = curve_of("quartet2-double", BiasData::massive_token);
    EXPECT_GT(once.excess(), 5);
    EXPECT_LT(twice.excess(), once.excess() / 3);
}

TEST(AveragedGradient, OfOneRotationKeepsABiasOnHeavyTails) {
    const BiasCurve once = curve_of("quartet2", BiasData::student_t2);
    const BiasCurve twice = curve_of("quartet2-double", BiasData::student_t2);
    EXPECT_GT(once.bias(), 3 * twice.bias());
}

// Random signs after the transform instead of before it cancel in the product and change no code: what is
// left is a plain Hadamard transform with nearest rounding, the same in every draw. The study sees it.
TEST(AveragedGradient, T09_FindsSignsOnTheWrongSideOfTheRotation) {
    Recipe right = find_recipe("quartet");
    right.fprop_x.spec = right.fprop_w.spec = parse_spec("bf16");
    Recipe wrong = right;
    for (OperandSpec* o : {&wrong.dgrad_dy, &wrong.dgrad_w, &wrong.wgrad_dy, &wrong.wgrad_x}) {
        o->spec = parse_spec("mxfp4 1x32 scale=three-quarters rotate=hadamard:32");
    }
    const LayerData data = bias_data(BiasData::normal, 256, 64, 64);
    test::expect_published("64 e(64) / e(1), signs after the rotation", 64, 1e-6,
                           averaged_gradient(wrong, data, 64).excess());
    test::expect_at_most("the same, signs before it", 4, averaged_gradient(right, data, 64).excess());
}

TEST(AveragedGradient, OfNearestRoundingNeverChanges) {
    Recipe recipe = find_recipe("bf16");
    recipe.wgrad_dy.spec = recipe.wgrad_x.spec = parse_spec("nvfp4 1x16 range=16/17 round=stochastic");
    EXPECT_TRUE(has_random_gradient(recipe));
    EXPECT_NEAR(curve_of(recipe, BiasData::normal).excess(), 1.0, 0.35);
    recipe.wgrad_dy.spec = recipe.wgrad_x.spec = parse_spec("nvfp4 1x16 rotate=rht:16 signs=run");
    EXPECT_FALSE(has_random_gradient(recipe));
    EXPECT_NEAR(curve_of(recipe, BiasData::normal).excess(), kDraws, 1e-6);
}

// What the forward used differs from draw to draw; so does its gradient.
TEST(AveragedGradient, FollowsAForwardThatDraws) {
    Recipe recipe = find_recipe("tetrajet");
    recipe.fprop_x.spec = parse_spec("mxfp4 1x32 scale=rceil round=stochastic");
    EXPECT_NEAR(curve_of(recipe, BiasData::normal).excess(), 1.0, 0.35);
}

TEST(AveragedGradient, NeedsTwoDraws) {
    const LayerData data = bias_data(BiasData::normal, 128, 16, 16);
    EXPECT_THROW(averaged_gradient(find_recipe("quartet2"), data, 1), Error);
}

TEST(AveragedGradient, NeedsTokensThatTheGradientSees) {
    const LayerData data = bias_data(BiasData::massive_token, 32, 16, 16);
    EXPECT_THROW(averaged_gradient(find_recipe("quartet2"), data, 4), Error);
}

}  // namespace
}  // namespace nibble
