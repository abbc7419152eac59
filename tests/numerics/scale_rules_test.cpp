// The scale rules, one group at a time, against slow independent definitions and published examples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "numerics/numerics.h"
#include "support/measured.h"
#include "support/samples.h"

namespace nibble {
namespace {

template <typename Body>
void for_each_positive_bf16(Body&& body) {
    for (int bits = 1; bits < 0x7f80; ++bits) body(bf16_decode({static_cast<uint16_t>(bits)}));
}

int clamped_byte(int exponent) { return std::min(std::max(exponent, -127), 125) + 127; }

// --- MXFP4 ---

TEST(Mxfp4, FloorIsTheExponentLessTwo) {
    for_each_positive_bf16(
        [](float amax) { ASSERT_EQ(mxfp4_floor(amax), clamped_byte(std::ilogb(amax) - 2)) << amax; });
}

TEST(Mxfp4, CeilRoundsTheLogarithmUp) {
    for_each_positive_bf16([](float amax) {
        int exponent = std::ilogb(amax);
        exponent += std::ldexp(1.0, exponent) != amax;
        ASSERT_EQ(mxfp4_ceil(amax), clamped_byte(exponent - 2)) << amax;
    });
}

TEST(Mxfp4, RceilIsTheSmallestPowerOfTwoThatClipsNothing) {
    for_each_positive_bf16([](float amax) {
        const double sixth = static_cast<float>(amax * (1.0f / 6.0f));
        int exponent = -127;
        while (exponent < 125 && std::ldexp(1.0, exponent) < sixth) ++exponent;
        ASSERT_EQ(mxfp4_rceil(amax), exponent + 127) << amax;
    });
}

TEST(Mxfp4, EvenRoundsTheMaximumUpFromSevenQuarters) {
    for_each_positive_bf16([](float amax) {
        if (amax < 0x1p-126f) return;
        int exponent = std::ilogb(amax);
        exponent += amax >= 1.75 * std::ldexp(1.0, exponent);
        ASSERT_EQ(mxfp4_even(amax), clamped_byte(exponent - 2)) << amax;
    });
}

TEST(Mxfp4, T04_L07_WhereTheBlockMaximumLands) {
    for_each_positive_bf16([](float amax) {
        if (amax < 0x1p-120f || amax > 0x1p126f) return;
        const float floor = amax * mxfp4_element_factor(mxfp4_floor(amax));
        const float ceil = amax * mxfp4_element_factor(mxfp4_ceil(amax));
        const float rceil = amax * mxfp4_element_factor(mxfp4_rceil(amax));
        ASSERT_TRUE(floor >= 4 && floor < 8) << amax;
        ASSERT_TRUE(ceil > 2 && ceil <= 4) << amax;
        ASSERT_TRUE(rceil > 3 && rceil <= 6) << amax;
        const float three_quarters = kThreeQuarters * amax * mxfp4_element_factor(mxfp4_floor(amax));
        ASSERT_TRUE(three_quarters >= 3 && three_quarters < 6) << amax;  // never clips
    });
}

TEST(Mxfp4, ZeroBlocksHaveTheSmallestByteOfTheirRule) {
    EXPECT_EQ(mxfp4_floor(0.0f), 0);
    EXPECT_EQ(mxfp4_ceil(0.0f), 0);
    EXPECT_EQ(mxfp4_rceil(0.0f), 0);
    EXPECT_EQ(mxfp4_even(0.0f), 0);
    EXPECT_EQ(mxfp4_quest(0.0f, 1.0f), 100);  // 2^-27, the power of two below 1e-8
}

TEST(Mxfp4, TheLargestScaleKeepsSixTimesItFinite) {
    const float huge = 3.4e38f;
    for (const auto rule : {mxfp4_floor, mxfp4_ceil, mxfp4_rceil, mxfp4_even}) EXPECT_LE(rule(huge), 252);
    EXPECT_LE(mxfp4_quest(huge, 100.0f), 252);
}

TEST(Quest, SpreadIsTheStandardDeviationOrTheRootMeanSquare) {
    std::vector<float> x = test::normals(32, 11);
    double mean = 0, square = 0;
    float amax = 0;
    for (float& v : x) {
        v += 0.5f;
        mean += v / 32.0;
        square += double{v} * v / 32.0;
        amax = std::max(amax, std::fabs(v));
    }
    EXPECT_NEAR(quest_spread(x.data(), amax, true), std::sqrt(square - mean * mean), 1e-6);
    EXPECT_NEAR(quest_spread(x.data(), amax, false), std::sqrt(square), 1e-6);
}

TEST(Quest, SpreadOfAConstantBlockIsZeroAboutTheMean) {
    const std::vector<float> x(32, 0.3f);
    EXPECT_NEAR(quest_spread(x.data(), 0.3f, true), 0.0f, 1e-4f);
    EXPECT_GE(quest_spread(x.data(), 0.3f, true), 0.0f);
    EXPECT_NEAR(quest_spread(x.data(), 0.3f, false), 0.3f, 1e-6f);
}

TEST(Quest, SpreadOfHugeValuesIsFinite) {
    std::vector<float> x = test::normals(32, 12);
    const float small = quest_spread(x.data(), 3.0f, true);
    for (float& v : x) v *= 0x1p120f;
    EXPECT_EQ(quest_spread(x.data(), 3.0f * 0x1p120f, true), small * 0x1p120f);
}

// --- NVFP4 ---

const Nvfp4Rule kPlain = nvfp4_rule(1, 1, 448.0f);

TEST(Nvfp4, L04_ConstantsAreTheFieldsNumbers) {
    EXPECT_EQ(kPlain.reach, 2688.0f);
    EXPECT_EQ(kPlain.inverse_top, 1.0f / 6.0f);
    EXPECT_EQ(nvfp4_rule(1, 1, 256.0f).reach, 1536.0f);
    EXPECT_EQ(nvfp4_rule(1, 1, 240.0f).reach, 1440.0f);
    EXPECT_EQ(e4m3_decode(e4m3_nearest(256 * 1.5f)), 384.0f);
    EXPECT_EQ(e4m3_decode(e4m3_nearest(448 * 1.5f)), 448.0f);  // 672 is not a number of the format
    EXPECT_EQ(nvfp4_rule(2, 3, 448.0f).reach, 1792.0f);
    EXPECT_EQ(nvfp4_rule(2, 3, 448.0f).top, 4.0f);
    EXPECT_NEAR(nvfp4_rule(1600, 1581, 256.0f).top, 6.0721f, 1e-4);
}

// Block maxima over the whole range of normal scales end within 1/17 of 6.
TEST(Nvfp4, L05_ScaledBlockMaximumLiesBetween5667And6375) {
    const Nvfp4Tensor tensor = nvfp4_tensor(kPlain, 1.0f);
    float low = 9, high = 0;
    for (float amax = 1.0f; amax > 3.6e-5f; amax *= 0.9997f) {
        const uint8_t scale = nvfp4_scale(tensor, amax);
        ASSERT_GE(scale, 8);
        const float v = amax * nvfp4_element_factor(tensor, scale);
        low = std::min(low, v);
        high = std::max(high, v);
    }
    test::expect_published("smallest scaled block maximum", 6.0 * 17 / 18, 0.002, low);
    test::expect_published("largest scaled block maximum", 6.0 * 17 / 16, 0.002, high);
}

TEST(Nvfp4, I04_L05_RangeSixteenSeventeenthsNeverExceedsSix) {
    const Nvfp4Tensor tensor = nvfp4_tensor(nvfp4_rule(16, 17, 448.0f), 1.0f);
    float high = 0;
    for (float amax = 1.0f; amax > 3.6e-5f; amax *= 0.9997f) {
        high = std::max(high, amax * nvfp4_element_factor(tensor, nvfp4_scale(tensor, amax)));
    }
    test::expect_at_most("largest scaled block maximum, range 16/17", 6.0f * (1.0f + 0x1p-22f), high);
}

TEST(Nvfp4, L06_BlocksBecomeSubnormalAndVanishWhereDocumented) {
    const Nvfp4Tensor tensor = nvfp4_tensor(kPlain, 1.0f);
    EXPECT_GE(nvfp4_scale(tensor, 3.50e-5f), 8);
    EXPECT_LT(nvfp4_scale(tensor, 3.2e-5f), 8);
    EXPECT_GT(nvfp4_scale(tensor, 2.2e-6f), 0);
    EXPECT_EQ(nvfp4_scale(tensor, 2.17e-6f), 0);
    // Between one and eight steps of the subnormal scales. (Below one, where they round up to it, down to 3.)
    float low = 9, high = 0;
    for (float amax = 3.3e-5f; amax > 6 * 0x1p-9f / 2688; amax *= 0.9997f) {
        const float v = amax * nvfp4_element_factor(tensor, nvfp4_scale(tensor, amax));
        low = std::min(low, v);
        high = std::max(high, v);
    }
    test::expect_published("smallest scaled maximum under a subnormal scale", 4.5, .1, low);
    test::expect_published("largest", 9.0, .1, high);
}

TEST(Nvfp4, ScalesOfExtremeTensorsAreFinite) {
    for (const float amax : {0.0f, 0x1p-149f, 1e-38f, 1e-20f, 1.0f, 1e20f, 3.4e38f}) {
        const Nvfp4Tensor tensor = nvfp4_tensor(kPlain, amax);
        EXPECT_TRUE(std::isfinite(tensor.encode) && tensor.encode > 0) << amax;
        EXPECT_TRUE(std::isfinite(tensor.scale) && tensor.scale > 0) << amax;
        EXPECT_LE(nvfp4_scale(tensor, amax), kE4M3MaxByte) << amax;
        EXPECT_TRUE(std::isfinite(nvfp4_element_factor(tensor, 1))) << amax;
    }
}

// The block 10, 20, 30, 40 of the paper of Four Over Six: to 6 it costs 4.328 a value, to 4 nothing. The
// tensor's maximum is such that S = 1.
TEST(FourSix, PaperExample) {
    const Nvfp4Rule rule = nvfp4_rule(1, 1, 256.0f);
    const Nvfp4Tensor tensor = nvfp4_tensor(rule, rule.reach);
    ASSERT_EQ(tensor.encode, 1.0f);
    const uint8_t six = four_six_scale_6(tensor, 40.0f), four = four_six_scale_4(tensor, 40.0f);
    EXPECT_EQ(e4m3_decode(six), 6.5f);
    EXPECT_EQ(e4m3_decode(four), 10.0f);
    double error[2] = {};
    for (const float x : {10.0f, 20.0f, 30.0f, 40.0f}) {
        int i = 0;
        for (const uint8_t scale : {six, four}) {
            const uint8_t code = e2m1_nearest(clamp_to_e2m1(x * nvfp4_element_factor(tensor, scale)));
            const float d = four_six_error(tensor, x, code, scale);
            error[i++] += d * d / 4.0;
        }
    }
    EXPECT_NEAR(error[0], 4.328, 0.001);
    EXPECT_EQ(error[1], 0.0);
}

TEST(Eden, I07_FactorRestoresTheProjection) {
    const std::vector<float> y = test::normals(16, 21);
    const Nvfp4Tensor tensor = nvfp4_tensor(kPlain, 4.0f);
    const uint8_t scale = nvfp4_scale(tensor, 2.5f);
    uint8_t codes[16];
    for (int i = 0; i < 16; ++i)
        codes[i] = e2m1_nearest(clamp_to_e2m1(y[i] * nvfp4_element_factor(tensor, scale)));
    const double factor = eden_factor(y.data(), codes, scale, tensor.scale, 1.0f);
    double power = 0, projection = 0;
    for (int i = 0; i < 16; ++i) {
        power += double{y[i]} * y[i];
        projection += double{y[i]} * nvfp4_operand(codes[i], scale) * tensor.scale * factor;
    }
    EXPECT_NEAR(projection / power, 1.0, 1e-6);
}

TEST(Eden, FactorIsOneWhereNothingSurvivedOrSumsOverflow) {
    EXPECT_EQ(eden_ratio(1.0f, 0.0f), 1.0f);
    EXPECT_EQ(eden_ratio(std::numeric_limits<float>::infinity(), 1.0f), 1.0f);
    EXPECT_EQ(eden_ratio(1.0f, std::numeric_limits<float>::infinity()), 1.0f);
    EXPECT_EQ(eden_ratio(3.0f, 2.0f), 1.5f);
}

TEST(Eden, UnitKeepsTheFactorOfTinyAndHugeTensors) {
    const std::vector<float> y = test::normals(16, 22);
    float expected = 0;
    for (const int exponent : {0, -60, -100, 70, 110}) {
        const float size = std::ldexp(1.0f, exponent);
        std::vector<float> x = y;
        for (float& v : x) v *= size;
        const Nvfp4Tensor tensor = nvfp4_tensor(kPlain, 4.0f * size);
        const uint8_t scale = nvfp4_scale(tensor, 2.5f * size);
        uint8_t codes[16];
        for (int i = 0; i < 16; ++i) {
            codes[i] = e2m1_nearest(clamp_to_e2m1(x[i] * nvfp4_element_factor(tensor, scale)));
        }
        const float factor = eden_factor(x.data(), codes, scale, tensor.scale, eden_unit(tensor.amax));
        if (exponent == 0) expected = factor;
        EXPECT_EQ(factor, expected) << exponent;
    }
    EXPECT_EQ(eden_unit(1.0f), 1.0f);
}

// Pass 1 of the published kernel on a group with maximum 2.71 and one with 40 (range 1600/1581).
TEST(Posthoc, ScalesAreCutToFourMantissaBits) {
    const Nvfp4Rule rule = nvfp4_rule(1600, 1581, 256.0f);
    EXPECT_EQ(posthoc_scale(rule, 2.71f), 0.4375f);
    EXPECT_EQ(posthoc_scale(rule, 40.0f), 6.5f);
    EXPECT_EQ(posthoc_wide_scale(0.4375f, 0.9830288f), 0.4296875f);
    EXPECT_EQ(posthoc_wide_scale(6.5f, 1.00340468f), 6.53125f);
    EXPECT_NEAR(posthoc_tensor_scale(rule, 6.53125f), 0.0255126953, 1e-10);
    EXPECT_EQ(posthoc_tensor_scale(rule, 0.0f), 1.0f);
    EXPECT_GT(posthoc_tensor_scale(rule, 0x1p-149f), 0.0f);
}

}  // namespace
}  // namespace nibble
