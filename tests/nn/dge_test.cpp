#include "nn/dge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/linear_run.h"
#include "support/measured.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Matrix;

constexpr double kCodes[] = {-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6};  // 14 intervals
constexpr Dge kPaper = {5, 3};

TEST(Dge, L22_KeepsCodesAndMidpoints) {
    for (size_t i = 0; i < std::size(kCodes); ++i) {
        EXPECT_EQ(dge_surrogate(kCodes[i], 5), kCodes[i]);
        if (i == 0) continue;
        const double middle = (kCodes[i - 1] + kCodes[i]) / 2;
        EXPECT_EQ(dge_surrogate(middle, 5), middle);
    }
    EXPECT_EQ(dge_surrogate(7, 5), 6);
    EXPECT_EQ(dge_surrogate(-7, 5), -6);
}

TEST(Dge, IsNearRoundingForALargeExponent) {
    EXPECT_NEAR(dge_surrogate(0.2, 1000), 0, 0.002);
    EXPECT_NEAR(dge_surrogate(0.3, 1000), 0.5, 0.002);
    EXPECT_NEAR(dge_surrogate(-5.5, 1000), -6, 0.002);
    EXPECT_NEAR(dge_surrogate(0.2, 1), 0.2, 1e-12);  // and no rounding at all for an exponent of 1
}

TEST(Dge, HasTheSlopeOfItsSurrogate) {
    constexpr double kStep = 1e-5;
    for (const double x : {-5.6, -4.3, -2.2, -0.1, 0.07, 0.4, 0.6, 1.45, 1.6, 2.9, 3.2, 4.2, 5.9}) {
        const double slope = (dge_surrogate(x + kStep, 5) - dge_surrogate(x - kStep, 5)) / (2 * kStep);
        EXPECT_NEAR(dge_slope(static_cast<float>(x), {5, 1e6}), slope, 1e-3 * slope) << x;
    }
}

TEST(Dge, L22_HasTheSlopeOneOverKAtCodes) {
    for (const double code : kCodes)
        EXPECT_FLOAT_EQ(dge_slope(static_cast<float>(code), kPaper), 0.2f) << code;
    EXPECT_FLOAT_EQ(dge_slope(2.0f, {4, 3}), 0.25f);
    EXPECT_FLOAT_EQ(dge_slope(6.001f, kPaper), 0.2f);  // what rounding lets out of the range
}

TEST(Dge, IsCappedInTheMiddleOfAnInterval) {
    EXPECT_EQ(dge_slope(0.25f, kPaper), 3.0f);
    EXPECT_EQ(dge_slope(-5.0f, kPaper), 3.0f);
    EXPECT_EQ(dge_slope(2.5f, {5, 1.5}), 1.5f);
}

// Constants computed independently: (3k)^(-k/(k-1)) of an interval is at the cap, and the mean slope is
// .5935.
TEST(Dge, L22_IsAtItsCapOverTheShareThatTheFormulaGives) {
    constexpr int kSamples = 1 << 18;
    const auto share = [](double k) {
        int capped = 0;
        for (int i = 0; i < kSamples; ++i) {
            const float x = 4 + 2 * (static_cast<float>(i) + 0.5f) / kSamples;
            capped += dge_slope(x, {k, 3}) == 3.0f;
        }
        return static_cast<double>(capped) / kSamples;
    };
    test::expect_published("share at the cap, k = 5", .0339, 5e-5, share(5));
    test::expect_published("k = 3", .0370, 5e-5, share(3));
    test::expect_published("k = 10", .0228, 5e-5, share(10));
    double mean = 0;
    for (int i = 0; i < kSamples; ++i)
        mean += dge_slope(0.5f * (static_cast<float>(i) + 0.5f) / kSamples, kPaper) / double{kSamples};
    test::expect_published("mean slope, capped", .5935, 5e-5, mean);
}

TEST(Dge, ScalesEachRowByItsOwnMaximum) {
    const Matrix w(DType::f32, 3, 4, {1, -2, 0.5f, 0.25f, 100, -200, 50, 25, 0, 0, 0, 0});
    const Matrix gradient(DType::f32, 3, 4, test::normals(12));
    const std::vector<float> before = gradient.values();
    Arena none(0);
    Context context{none};
    multiply_by_dge_slope(context, kPaper, w.tensor(), gradient.tensor());
    const float scaled[] = {3, -6, 1.5f, 0.75f};  // 6 w / amax, of the first row and of the second
    for (size_t i = 0; i < 12; ++i) {
        const float slope = i < 8 ? dge_slope(scaled[i % 4], kPaper) : 0.2f;
        EXPECT_FLOAT_EQ(gradient.values().at(i), before[i] * slope) << i;
    }
}

}  // namespace
}  // namespace nibble
