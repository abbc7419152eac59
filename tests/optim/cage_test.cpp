#include "optim/cage.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/samples.h"

namespace nibble {
namespace {

// One update, with memory planned as the trainer does.
void update(std::string_view text, double rate, std::vector<float>& x, int64_t cols) {
    const QuantSpec spec = parse_spec(text);
    const Tensor w = view_of(x, {static_cast<int64_t>(x.size()) / cols, cols});
    Arena arena;
    Context context{arena};
    cage_update(context, spec, {.seed = 3}, rate, w);
    arena.commit();
    cage_update(context, spec, {.seed = 3}, rate, w);
}

TEST(Cage, L21_IsSilentUntilItsShareOfTheRunIsOver) {
    EXPECT_EQ(cage_lambda({}, 1, 100), 0.0);
    EXPECT_EQ(cage_lambda({}, 80, 100), 0.0);
    EXPECT_GT(cage_lambda({}, 81, 100), 0.0);
    EXPECT_EQ(cage_lambda({.ramp = "constant"}, 80, 100), 0.0);
}

TEST(Cage, RisesToItsStrengthOrHasItAtOnce) {
    EXPECT_NEAR(cage_lambda({}, 90, 100), 5.0, 1e-12);
    EXPECT_NEAR(cage_lambda({}, 100, 100), 10.0, 1e-12);
    EXPECT_EQ(cage_lambda({.ramp = "constant"}, 81, 100), 10.0);
}

TEST(Cage, L21_WithoutARateChangesNoBit) {
    std::vector<float> x = test::normals(4 * 64);
    const std::vector<float> before = x;
    update("nvfp4 1x16", 0.0, x, 64);
    EXPECT_EQ(x, before);
}

// With lr 1e-3 and lambda 10 the distance to the quantised value becomes 0.99 of itself.
TEST(Cage, L21_ShrinksTheDistanceToTheQuantisedValue) {
    for (const char* spec : {"nvfp4 1x16", "nvfp4 16x16", "mxfp4 1x32 scale=quest:std rotate=hadamard:32",
                             "nvfp4 1x16 rotate=rht2:64 signs=step"}) {
        std::vector<float> x = test::normals(4 * 100);
        const std::vector<float> before = x;
        std::vector<float> quantized = x;
        update(spec, 1.0, quantized, 100);  // x - (x - Q(x))
        update(spec, 0.01, x, 100);
        for (size_t i = 0; i < x.size(); ++i) {
            EXPECT_NEAR(x[i] - quantized[i], 0.99f * (before[i] - quantized[i]), 2e-6) << spec << " " << i;
        }
        EXPECT_NE(x, before);
    }
}

// Q(w) of a spec that rotates is near w itself, not near its rotation.
TEST(Cage, PullsInTheSpaceOfTheWeight) {
    std::vector<float> x = test::normals(8 * 128), q = x;
    update("nvfp4 1x16 rotate=rht:128 signs=step", 1.0, q, 128);
    double error = 0, power = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        error += std::pow(double{q[i]} - x[i], 2);
        power += std::pow(double{x[i]}, 2);
    }
    EXPECT_NEAR(error / power, 0.009, 0.001);  // the quantiser's own error on normal numbers
}

TEST(Cage, RefusesWhatIsNoF32Matrix) {
    std::vector<Bf16> x(32);
    Arena arena;
    Context context{arena};
    EXPECT_THROW(cage_update(context, parse_spec("nvfp4"), {}, 0.1, view_of(x, {2, 16})), Error);
}

}  // namespace
}  // namespace nibble
