// Small worked examples and invariants from the literature and from public implementations.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/measured.h"
#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::expect_published;
using test::Quantized;

// Sixteen codes of one row from `first`, one hexadecimal digit each.
std::string digits(const Quantized& q, int64_t row, int64_t first) {
    std::string text;
    for (int64_t k = first; k < first + 16; ++k) text += "0123456789abcdef"[q.code(row, k)];
    return text;
}

// The same with one zero for both signs, where the source has but one.
std::string unsigned_zeros(std::string text) {
    for (char& digit : text) digit = digit == '8' ? '0' : digit;
    return text;
}

// --- NVFP4: two rows of 16, from the notes on TransformerEngine's order of operations ---

std::vector<float> two_rows() {
    std::vector<float> x;
    for (int i = 0; i < 16; ++i) x.push_back((static_cast<float>(i) - 7.5f) / 4.0f);
    for (int i = 0; i < 16; ++i) {
        x.push_back((i % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>((i + 1) * (i + 1)) / 100.0f);
    }
    return x;
}

TEST(Published, T01_I02_L09_Nvfp4OfTwoRows) {
    std::vector<float> x = two_rows();
    const Quantized q("nvfp4", view_of(x, {2, 16}));
    EXPECT_EQ(q.scale(0, 0), 0x7a);
    EXPECT_EQ(q.scale(1, 0), 0x7e);
    EXPECT_EQ(digits(q, 0, 0), "ffeedca912456677");
    EXPECT_EQ(digits(q, 1, 0), "08091a2b4c5d6e7f");
    const auto* bytes = q.matrix().codes.as<uint8_t>();  // the even element in the low nibble
    const std::vector<uint8_t> first(bytes, bytes + 8);
    EXPECT_EQ(first, (std::vector<uint8_t>{0xff, 0xee, 0xcd, 0x9a, 0x21, 0x54, 0x66, 0x77}));
    expect_published("relative MSE", 0.0088824, 1e-7, test::relative_mse(x, q.values()));
}

TEST(Published, L10_FourSixMeasuresDisagreeOnTheFirstRow) {
    std::vector<float> x = two_rows();
    const Tensor tensor = view_of(x, {2, 16});
    const Quantized mse("nvfp4 scale=four-six:mse", tensor), mae("nvfp4 scale=four-six:mae", tensor);
    EXPECT_EQ(e4m3_decode(mse.scale(0, 0)), 288.0f);  // to 4
    EXPECT_EQ(e4m3_decode(mae.scale(0, 0)), 192.0f);  // to 6
    EXPECT_EQ(e4m3_decode(mse.scale(1, 0)), 256.0f);
    EXPECT_EQ(e4m3_decode(mae.scale(1, 0)), 256.0f);
}

TEST(Published, L11_Mxfp4OfTheSameValuesAsOneBlock) {
    std::vector<float> x = two_rows();
    for (const char* spec : {"mxfp4 scale=floor", "mxfp4 scale=rceil"}) {
        const Quantized q(spec, view_of(x, {1, 32}));
        EXPECT_EQ(e8m0_decode(q.scale(0, 0)), 0.5f) << spec;
        expect_published(std::string("relative MSE, ") + spec, 0.0139652, 1e-7,
                         test::relative_mse(x, q.values()));
    }
    const Quantized q("mxfp4 scale=three-quarters", view_of(x, {1, 32}));
    EXPECT_FLOAT_EQ(e8m0_decode(q.scale(0, 0)) * q.tensor_scale(), 2.0f / 3.0f);
    expect_published("relative MSE, mxfp4 scale=three-quarters", 0.0129852, 1e-7,
                     test::relative_mse(x, q.values()));
}

// --- the golden vector of Quartet II: 32 values in two groups, cap 255.99 for MS-EDEN ---

std::vector<float> two_groups() {
    return {0.13f,  -0.27f, 0.44f, 0.81f,  -1.37f, 1.05f, 2.3f,  -0.07f, 0.9f,   -1.9f, 0.33f,
            1.62f,  -0.58f, 0.21f, -2.71f, 1.18f,  10.1f, 20.3f, 29.4f,  40.0f,  -9.7f, -21.0f,
            -31.0f, -38.0f, 5.3f,  15.2f,  24.6f,  36.1f, -4.6f, -14.2f, -26.3f, -33.2f};
}

double squared_error(const std::vector<float>& x, const std::vector<float>& values, int first) {
    double sum = 0;
    for (int i = first; i < first + 16; ++i) sum += (values[i] - x[i]) * double{values[i] - x[i]};
    return sum;
}

TEST(Published, I20_QuartetTwoNearest) {
    std::vector<float> x = two_groups();
    const Quantized q("nvfp4", view_of(x, {1, 32}));
    expect_published("tensor scale, nvfp4", 0.01488095238, 1e-9, q.tensor_scale());
    EXPECT_EQ(q.scale(0, 0), 0x5f);
    EXPECT_EQ(q.scale(0, 16), 0x7e);
    EXPECT_EQ(unsigned_zeros(digits(q, 0, 0)), "1924d4704e16b1f5");
    EXPECT_EQ(digits(q, 0, 16), "3567bdef24679cee");
    expect_published("squared error of group 0, nvfp4", 0.27818, 1e-5, squared_error(x, q.values(), 0));
    expect_published("squared error of group 1, nvfp4", 101.447, 1e-3, squared_error(x, q.values(), 16));
}

TEST(Published, I20_QuartetTwoFourSixPicksFourInBothGroups) {
    std::vector<float> x = two_groups();
    const Quantized q("nvfp4 scale=four-six:mse", view_of(x, {1, 32}));
    expect_published("tensor scale, four-six", 0.02604166667, 1e-9, q.tensor_scale());
    EXPECT_EQ(q.scale(0, 0), 0x5d);
    EXPECT_EQ(q.scale(0, 16), 0x7c);
    EXPECT_EQ(unsigned_zeros(digits(q, 0, 0)), "0912c3503d14a1e3");
    EXPECT_EQ(digits(q, 0, 16), "2456acde13469bdd");
    expect_published("squared error of group 0, four-six", 0.28242, 1e-5, squared_error(x, q.values(), 0));
    expect_published("squared error of group 1, four-six", 67.78, 1e-2, squared_error(x, q.values(), 16));
}

TEST(Published, I08_I20_QuartetTwoMsEden) {
    std::vector<float> x = two_groups();
    const Tensor tensor = view_of(x, {1, 32});
    const Quantized before("nvfp4 cap=255.99 range=1600/1581", tensor);
    EXPECT_NEAR(before.tensor_scale(), 0.02573342709, 1e-9);
    EXPECT_EQ(before.scale(0, 0), 0x59);
    EXPECT_EQ(before.scale(0, 16), 0x78);
    constexpr int kDraws = 20000;
    int up[2] = {};
    for (uint64_t seed = 0; seed < kDraws; ++seed) {
        const Quantized q("nvfp4 scale=eden cap=255.99", tensor, {.seed = seed});
        ASSERT_EQ(unsigned_zeros(digits(q, 0, 0)), "1923d4604e15b1f5");
        ASSERT_EQ(digits(q, 0, 16), "3567bdef24679cef");
        const float first = e4m3_decode(q.scale(0, 0)), second = e4m3_decode(q.scale(0, 16));
        ASSERT_TRUE(first == 18.0f || first == 20.0f);
        ASSERT_TRUE(second == 240.0f || second == 256.0f);
        up[0] += first == 20.0f;
        up[1] += second == 256.0f;
    }
    expect_published("share of coins that take the upper scale, group 0", 0.43783,
                     4.5 * 0.5 / std::sqrt(kDraws), up[0] / double{kDraws});
    expect_published("share of coins that take the upper scale, group 1", 0.84061,
                     4.5 * 0.37 / std::sqrt(kDraws), up[1] / double{kDraws});
}

TEST(Published, I20_QuartetTwoPosthoc) {
    std::vector<float> x = two_groups();
    const Quantized q("nvfp4 scale=eden tensor=posthoc scale-round=nearest", view_of(x, {1, 32}));
    expect_published("tensor scale, posthoc", 0.0255126953, 1e-9, q.tensor_scale());
    EXPECT_EQ(unsigned_zeros(digits(q, 0, 0)), "1924d4704e26b1f5");
    EXPECT_EQ(digits(q, 0, 16), "3567bdef24679cef");
    EXPECT_EQ(e4m3_decode(q.scale(0, 0)), 16.0f);  // of 16.842
    EXPECT_EQ(e4m3_decode(q.scale(0, 16)), 256.0f);
}

// --- the rotation of TransformerEngine ---

TEST(Published, L12_TransformerEngineRotation) {
    const QuantSpec spec = parse_spec("nvfp4 rotate=rht:16 signs=te");
    std::vector<float> x(32, 1.0f);
    for (int i = 0; i < 16; ++i) x[16 + i] = static_cast<float>(i);
    Arena arena(64);
    Context context{arena};
    rotate(context, 16, rotation_signs(spec, {}), view_of(x, {2, 16}));
    const std::vector<float> ones = {-1, 0, 1, 0, 1, 0, -1, 0, 1, 2, 1, 0, 1, 0, 1, -2};
    const std::vector<float> ramp = {-14.5, -7.5, 6.5, -0.5, 6.5, -0.5, -14.5, 8.5,
                                     7.5,   14.5, 0.5, 1.5,  0.5, -2.5, 9.5,   -15.5};
    EXPECT_EQ(std::vector<float>(x.begin(), x.begin() + 16), ones);
    EXPECT_EQ(std::vector<float>(x.begin() + 16, x.end()), ramp);
}

// --- Quartet: three-quarters and QuEST ---

TEST(Published, T05_QuartetThreeQuarters) {
    const auto values = [](std::vector<float> x, std::string_view words) {
        x.resize(32, 0.0f);
        const Quantized q("mxfp4 scale=three-quarters " + std::string(words), view_of(x, {1, 32}));
        EXPECT_FLOAT_EQ(e8m0_decode(q.scale(0, 0)) * q.tensor_scale(), 1.0f / 3.0f);
        std::vector<float> codes;
        for (int i = 0; i < 5; ++i) codes.push_back(e2m1_decode(q.code(0, i)));
        return codes;
    };
    EXPECT_EQ(values({1.0f, 0.9f, 0.5f, 0.25f, -0.1f}, ""), (std::vector<float>{3, 3, 1.5, 1, -0.5}));
    EXPECT_EQ(values({1.0f, 0.9f, 0.5f, 0.25f, -0.1f}, "round=nearest-down"),
              (std::vector<float>{3, 3, 1.5, 0.5, -0.5}));
    EXPECT_EQ(values({1.99f, -1.2f, 0.7f}, ""), (std::vector<float>{6, -4, 2, 0, 0}));
}

TEST(Published, QuestClipsByTheSpreadOfTheBlock) {
    // sigma = .96: the scale is 2^floor(log2(.487 * .96)) = 1/4, the clip 1.5.
    std::vector<float> x(32);
    for (int i = 0; i < 32; ++i) x[i] = i % 2 == 0 ? 0.9f : -0.9f;
    x[0] = 1.6f;
    x[1] = -1.6f;
    const Quantized q("mxfp4 scale=quest:std mask=clip", view_of(x, {1, 32}));
    EXPECT_EQ(e8m0_decode(q.scale(0, 0)), 0.25f);
    EXPECT_EQ(e2m1_decode(q.code(0, 0)), 6.0f);
    EXPECT_FALSE(q.inside(0, 0));
    EXPECT_FALSE(q.inside(0, 1));
    for (int i = 2; i < 32; ++i) EXPECT_TRUE(q.inside(0, i));
}

TEST(Published, T12_QuestMaskIsStrict) {
    std::vector<float> x(32, 0.0f);
    for (int i = 0; i < 16; ++i) x[i] = i % 2 == 0 ? 1.5f : -1.5f;  // rms 1.06: the scale is 1/2
    x[0] = 3.0f;
    x[1] = std::nextafter(3.0f, 0.0f);
    const Quantized q("mxfp4 scale=quest:rms mask=clip", view_of(x, {1, 32}));
    ASSERT_EQ(e8m0_decode(q.scale(0, 0)), 0.5f);
    EXPECT_FALSE(q.inside(0, 0));
    EXPECT_TRUE(q.inside(0, 1));
}

TEST(Published, T14_QuestOfAConstantBlockClipsAboutTheMeanOnly) {
    std::vector<float> x(32, 1.0f);
    const Quantized std_deviation("mxfp4 scale=quest:std mask=clip", view_of(x, {1, 32}));
    EXPECT_EQ(e8m0_decode(std_deviation.scale(0, 0)), 0x1p-27f);
    for (int i = 0; i < 32; ++i) EXPECT_FALSE(std_deviation.inside(0, i));
    const Quantized rms("mxfp4 scale=quest:rms mask=clip", view_of(x, {1, 32}));
    EXPECT_EQ(rms.values(), x);
    for (int i = 0; i < 32; ++i) EXPECT_TRUE(rms.inside(0, i));
}

TEST(Published, T14_QuestOfZerosIsZeroAndInside) {
    std::vector<float> x(64, 0.0f);
    const Quantized q("mxfp4 scale=quest:std rotate=hadamard:32 mask=clip", view_of(x, {2, 32}));
    EXPECT_EQ(q.values(), x);
    for (int i = 0; i < 64; ++i) EXPECT_TRUE(q.inside(i / 32, i % 32));
}

// An outlier at position 0 becomes a constant under the rotation, which the standard deviation does not see.
TEST(Published, T14_QuestLosesAnOutlierAtPositionZeroAboutTheMean) {
    const int64_t rows = 4096;
    const auto error = [&](std::string_view scale, int position) {
        std::vector<float> x = test::normals(rows * 32, 31);
        for (int64_t r = 0; r < rows; ++r) x[r * 32 + position] = 10.0f;
        const Quantized q("mxfp4 rotate=hadamard:32 scale=" + std::string(scale), view_of(x, {rows, 32}));
        std::vector<float> rotated = x;
        Arena arena(64);
        Context context{arena};
        rotate(context, 32, {}, view_of(rotated, {rows, 32}));
        return test::relative_mse(rotated, q.values());
    };
    expect_published("relative MSE, quest:std, outlier at 0", 0.114, 0.004, error("quest:std", 0));
    expect_published("relative MSE, quest:rms, outlier at 0", 0.0145, 0.0006, error("quest:rms", 0));
    expect_published("relative MSE, quest:std, outlier at 5", 0.0149, 0.0006, error("quest:std", 5));
}

// --- NVFP4 as a whole: 18 of quartet II's list ---

TEST(Published, I18_OneHugeOutlierLeavesTheOtherGroupsAlone) {
    const int64_t rows = 256, cols = 256;
    const auto error = [&](float outlier) {
        std::vector<float> x = test::normals(rows * cols, 41);
        x[0] = outlier;
        std::vector<float> values = Quantized("nvfp4 scale=eden", view_of(x, {rows, cols})).values();
        x.erase(x.begin(), x.begin() + 16);
        values.erase(values.begin(), values.begin() + 16);
        return test::relative_mse(x, values);
    };
    expect_published("relative MSE of the others, outlier 1e4", 9.4e-3, 2e-4, error(1e4f));
    expect_published("relative MSE of the others, outlier 1e5", 2.2e-2, 2e-3, error(1e5f));
    expect_published("relative MSE of the others, outlier 1e6", 1.0, 0.1, error(1e6f));
    expect_published("relative MSE of the others, outlier 1e7", 1.0, 1e-6, error(1e7f));
}

// Nearest rounding: where the codes of N(0, 1) fall.
TEST(Published, I06_CodeHistogramOfNormalValues) {
    std::vector<float> x = test::normals(512 * 1024, 51);
    const Quantized q("nvfp4", view_of(x, {512, 1024}));
    double share[8] = {};
    for (int64_t i = 0; i < 512 * 1024; ++i) share[q.code(i / 1024, i % 1024) & 7] += 100.0 / (512 * 1024);
    const double expected[8] = {6.8, 13.5, 12.7, 11.7, 15.2, 15.3, 13.8, 11.2};
    for (uint8_t code = 0; code < 8; ++code) {
        expect_published(fmt::format("percent of magnitude {}", e2m1_decode(code)), expected[code], 0.2,
                         share[code]);
    }
}

}  // namespace
}  // namespace nibble
