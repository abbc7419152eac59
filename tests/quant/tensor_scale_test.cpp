// tensor=current, delayed, posthoc and none; rotation; reading back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/measured.h"
#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Quantized;

TEST(TensorScale, CurrentComesFromTheAmaxAfterRotation) {
    std::vector<float> x(128, 0.0f);
    x[0] = 16.0f;  // rotation by 16 spreads it to 4, by 128 to sqrt(2)
    const Tensor tensor = view_of(x, {1, 128});
    float amax = 0.0f;
    EXPECT_EQ(Quantized("nvfp4", tensor, {}, {.amax = &amax}).tensor_scale(), 1.0f / (2688.0f / 16.0f));
    EXPECT_EQ(amax, 16.0f);
    Quantized("nvfp4 rotate=rht:16", tensor, {}, {.amax = &amax});
    EXPECT_EQ(amax, 4.0f);
    Quantized("mxfp4 rotate=hadamard:16", tensor, {}, {.amax = &amax});
    EXPECT_EQ(amax, 4.0f);
}

TEST(TensorScale, IsMultipliedOnceByTheScaleOfTheInput) {
    const float scale = 0.37f;
    std::vector<float> x = test::normals(32 * 128, 1);
    const Tensor tensor = view_of(x, {32, 128});
    for (const char* spec : {"nvfp4", "nvfp4 tensor=posthoc", "nvfp4 scale=four-six:mse arithmetic=emulation",
                             "nvfp4 rotate=hadamard:32@rows", "mxfp4 scale=three-quarters", "fp8:e4m3 row"}) {
        for (const test::Path path : {test::Path::reference, test::Path::fast}) {
            const Quantized plain(spec, tensor, {}, {}, path);
            const Quantized scaled(spec, tensor, {}, {.scale = &scale}, path);
            EXPECT_EQ(scaled.tensor_scale(), plain.tensor_scale() * scale) << spec;
            EXPECT_TRUE(std::ranges::equal(scaled.matrix().codes.span<uint8_t>(),
                                           plain.matrix().codes.span<uint8_t>()))
                << spec;
        }
    }
}

TEST(TensorScale, AKnownAmaxIsTakenAsItIs) {
    std::vector<float> x = test::normals(64, 1);
    const float known = 10.0f;
    float amax = 0.0f;
    const Quantized q("nvfp4", view_of(x, {1, 64}), {}, {.known_amax = &known, .amax = &amax});
    EXPECT_EQ(q.tensor_scale(), 1.0f / (2688.0f / 10.0f));
    EXPECT_EQ(amax, 10.0f);
    // that of the rotated values, where there is a rotation
    const Quantized rotated("nvfp4 rotate=hadamard:16", view_of(x, {1, 64}), {}, {.known_amax = &known});
    EXPECT_EQ(rotated.tensor_scale(), 1.0f / (2688.0f / 10.0f));
}

TEST(TensorScale, DelayedUsesThePreviousAmaxAndReportsThisOne) {
    std::vector<float> x = test::normals(4 * 64, 2);
    const Tensor tensor = view_of(x, {4, 64});
    const float previous = 1.5f;
    float amax = 0.0f;
    const Quantized q("nvfp4 tensor=delayed", tensor, {}, {.previous_amax = &previous, .amax = &amax});
    EXPECT_EQ(q.bytes(), Quantized("nvfp4", tensor, {}, {.known_amax = &previous}).bytes());
    EXPECT_GT(amax, 2.0f);
    // the block of the maximum saturates
    uint8_t most = 0;
    for (int64_t i = 0; i < 4 * 64; i += 16) most = std::max(most, q.scale(i / 64, i % 64));
    EXPECT_EQ(most, kE4M3MaxByte);
}

TEST(TensorScale, DelayedIsCurrentInTheFirstStep) {
    std::vector<float> x = test::normals(4 * 64, 3);
    const Tensor tensor = view_of(x, {4, 64});
    EXPECT_EQ(Quantized("nvfp4 tensor=delayed", tensor).bytes(), Quantized("nvfp4", tensor).bytes());
}

// MS-EDEN has head-room: an amax 1.7 times too small changes nothing but the split between the scales.
TEST(TensorScale, I19_DelayedEdenAbsorbsGrowth) {
    constexpr int64_t kRows = 1024, kCols = 2048;  // the larger a tensor, the rarer blocks near its maximum
    std::vector<float> x = test::normals(kRows * kCols, 4);
    const Tensor tensor = view_of(x, {kRows, kCols});
    float amax = 0.0f;
    Quantized("nvfp4 scale=eden", tensor, {}, {.amax = &amax}, test::Path::fast);
    const auto values_at = [&](float factor) {
        const float previous = amax / factor;
        return Quantized("nvfp4 scale=eden tensor=delayed", tensor, {}, {.previous_amax = &previous},
                         test::Path::fast)
            .values();
    };
    test::expect_published_within(
        "relative MSE, amax 1.7 times too small, over that of the right one", 1, .02,
        test::relative_mse(x, values_at(1.7f)) / test::relative_mse(x, values_at(1.0f)));
    int64_t beyond = 0;  // scales that 448 cuts, before their rounding and correction
    for (auto block = x.begin(); block != x.end(); block += 16) {
        float largest = 0;
        for (auto v = block; v != block + 16; ++v) largest = std::max(largest, std::fabs(*v));
        beyond += largest * 3 * 256 / amax > 448;
    }
    test::expect_published("share of scales beyond 448, 3 times", .055, .01,
                           static_cast<double>(beyond) / (kRows * kCols / 16));
    test::expect_published("slope, 3 times", .996, .002, test::slope(x, values_at(3.0f)));
}

TEST(TensorScale, NoneMeansOne) {
    std::vector<float> x = test::normals(64, 5);
    for (const char* spec :
         {"nvfp4 tensor=none", "nvfp4 tensor=none scale=four-six:mse", "nvfp4 tensor=none range=16/17"}) {
        const Quantized q(spec, view_of(x, {1, 64}));
        EXPECT_EQ(q.tensor_scale(), 1.0f) << spec;
        EXPECT_LT(test::relative_mse(x, q.values()), 0.02) << spec;
    }
}

TEST(TensorScale, I09_PosthocPutsTheLargestCorrectedScaleAtTheCap) {
    std::vector<float> x = test::normals(64 * 256, 6);
    const Tensor tensor = view_of(x, {64, 256});
    for (const char* spec :
         {"nvfp4 scale=eden tensor=posthoc", "nvfp4 tensor=posthoc", "nvfp4 16x16 tensor=posthoc"}) {
        const Quantized q(spec, tensor);
        float largest = 0.0f;
        for (int64_t r = 0; r < 64; ++r) {
            for (int64_t k = 0; k < 256; ++k) largest = std::max(largest, e4m3_decode(q.scale(r, k)));
        }
        EXPECT_EQ(largest, q.matrix().spec.cap) << spec;
    }
}

// The wide scales are multiples of the tensor scale before they are rounded: over coins, bytes average to
// them.
TEST(TensorScale, PosthocSquareTilesShareOneByte) {
    std::vector<float> x = test::normals(64 * 64, 7);
    const Quantized q("nvfp4 16x16 tensor=posthoc scale-round=stochastic", view_of(x, {64, 64}));
    for (int64_t r = 0; r < 64; ++r) {
        for (int64_t k = 0; k < 64; ++k) ASSERT_EQ(q.scale(r, k), q.scale(r / 16 * 16, k));
    }
}

TEST(TensorScale, T13_OfMxfp4IsOneAndFourThirdsForThreeQuarters) {
    std::vector<float> x = test::normals(64, 8);
    for (const char* rule : {"floor", "ceil", "rceil", "even", "quest:std", "quest:rms"}) {
        EXPECT_EQ(Quantized("mxfp4 scale=" + std::string(rule), view_of(x, {1, 64})).tensor_scale(), 1.0f)
            << rule;
    }
    EXPECT_EQ(Quantized("mxfp4 scale=three-quarters", view_of(x, {1, 64})).tensor_scale(), 4.0f / 3.0f);
}

// --- rotation ---

class Rotate : public testing::TestWithParam<int> {
  protected:
    Arena arena_{64};
    Context context_{arena_};
};

TEST_P(Rotate, UnrotateIsItsInverse) {
    const int size = GetParam();
    const SignBits signs(0x5a5a1234deadbeefull);
    std::vector<float> x = test::normals(3 * 256, 9);
    const std::vector<float> original = x;
    rotate(context_, size, signs, view_of(x, {3, 256}));
    unrotate(context_, size, signs, view_of(x, {3, 256}));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], original[i], 2e-6);
}

TEST_P(Rotate, TwoRoundsAreTwoRotationsWithSignsOfTheirOwn) {
    const int size = GetParam();
    const SignBits first(0x5a5a1234deadbeefull), second(0x0123456789abcdefull);
    const SignBits both = first | second << kMaxRotation;
    std::vector<float> x = test::normals(3 * 256, 9), y = x;
    const std::vector<float> original = x;
    rotate(context_, size, both, view_of(x, {3, 256}), 2);
    rotate(context_, size, first, view_of(y, {3, 256}));
    rotate(context_, size, second, view_of(y, {3, 256}));
    EXPECT_EQ(x, y);
    unrotate(context_, size, both, view_of(x, {3, 256}), 2);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], original[i], 4e-6);
}

// Signs come before the transform: a unit vector's image changes as a whole, and only where its sign is set.
TEST_P(Rotate, AppliesSignsFirst) {
    const int size = GetParam();
    SignBits signs;
    signs[3] = true;
    std::vector<float> x(static_cast<size_t>(size), 0.0f), y = x;
    x[3] = y[3] = 1.0f;
    rotate(context_, size, {}, view_of(x, {1, size}));
    rotate(context_, size, signs, view_of(y, {1, size}));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], -x[i]);
}

// Both operands of a product rotated alike: the product stays; with other signs on one side it does not.
TEST_P(Rotate, T02_T11_I10_L13_CancelsInProducts) {
    const int size = GetParam();
    const SignBits signs(0x123456789abcdef5ull), others(0x0fedcba987654321ull);
    const auto product = [&](const SignBits& mine) {
        std::vector<float> x = test::normals(256, 10), y = test::normals(256, 11);
        rotate(context_, size, signs, view_of(x, {1, 256}));
        rotate(context_, size, mine, view_of(y, {1, 256}));
        double sum = 0;
        for (size_t i = 0; i < x.size(); ++i) sum += double{x[i]} * y[i];
        return sum;
    };
    const std::vector<float> x = test::normals(256, 10), y = test::normals(256, 11);
    double plain = 0;
    for (size_t i = 0; i < x.size(); ++i) plain += double{x[i]} * y[i];
    EXPECT_NEAR(product(signs), plain, 1e-4);
    EXPECT_GT(std::fabs(product(others) - plain), 0.1);
}

TEST_P(Rotate, IsWhatTheQuantiserDoes) {
    const int size = GetParam();
    for (const char* rotation : {"rht", "rht2"}) {
        const QuantSpec spec = parse_spec(fmt::format("nvfp4 rotate={}:{}", rotation, size));
        const RandomKey key = {.seed = 5, .gemm = Gemm::dgrad};
        std::vector<float> x = test::normals(8 * 256, 12);
        const Quantized q(spec, view_of(x, {8, 256}), key);
        rotate(context_, size, rotation_signs(spec, key), view_of(x, {8, 256}), spec.rotation_rounds());
        EXPECT_EQ(q.bytes(), Quantized("nvfp4", view_of(x, {8, 256})).bytes()) << rotation;
    }
}

TEST_P(Rotate, OutBf16RoundsBeforeTheRule) {
    const int size = GetParam();
    std::vector<float> x = test::normals(8 * 256, 13);
    const Quantized q("nvfp4 out=bf16 rotate=hadamard:" + std::to_string(size), view_of(x, {8, 256}));
    rotate(context_, size, {}, view_of(x, {8, 256}));
    for (float& v : x) v = round_to_bf16(v);
    EXPECT_EQ(q.bytes(), Quantized("nvfp4", view_of(x, {8, 256})).bytes());
}

INSTANTIATE_TEST_SUITE_P(Sizes, Rotate, testing::Values(16, 32, 64, 128));

TEST(Rotate, RefusesWhatDoesNotDivide) {
    Arena arena(64);
    Context context{arena};
    std::vector<float> x(48, 1.0f);
    EXPECT_THROW(rotate(context, 32, {}, view_of(x, {1, 48})), Error);
    EXPECT_THROW(rotate(context, 24, {}, view_of(x, {1, 48})), Error);
    std::vector<Bf16> narrow(48);
    EXPECT_THROW(unrotate(context, 16, {}, view_of(narrow, {1, 48})), Error);
}

// --- reading back ---

TEST(Dequantize, AllFormsAgree) {
    for (const char* spec : {"nvfp4", "nvfp4 16x16", "mxfp4 scale=three-quarters", "nvfp4 rotate=rht:128"}) {
        const int64_t rows = 21, cols = 70;
        std::vector<float> x = test::normals(rows * cols, 14);
        const Quantized q(spec, view_of(x, {rows, cols}));
        const int64_t padded = q.cols();
        const auto count = static_cast<size_t>(rows * padded);
        std::vector<float> full = q.values(), operand(count), transposed(count);
        std::vector<Bf16> narrow(count), narrow_transposed(count);
        Arena arena(64);
        Context context{arena};
        dequantize_operand(context, q.matrix(), view_of(operand, {rows, padded}));
        dequantize_operand(context, q.matrix(), view_of(narrow, {rows, padded}));
        dequantize_operand_transposed(context, q.matrix(), view_of(transposed, {padded, rows}));
        dequantize_operand_transposed(context, q.matrix(), view_of(narrow_transposed, {padded, rows}));
        const bool nvfp4 = q.matrix().spec.format == Format::nvfp4;
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t k = 0; k < padded; ++k) {
                const size_t i = static_cast<size_t>(r * padded + k), t = static_cast<size_t>(k * rows + r);
                const uint8_t scale = q.scale(r, k);
                ASSERT_EQ(operand[i],
                          e2m1_decode(q.code(r, k)) * (nvfp4 ? e4m3_decode(scale) : e8m0_decode(scale)));
                ASSERT_EQ(bf16_decode(narrow[i]), operand[i]);
                ASSERT_EQ(transposed[t], operand[i]);
                ASSERT_EQ(narrow_transposed[t], narrow[i]);
                ASSERT_EQ(full[i], operand[i] * q.tensor_scale());
            }
        }
    }
}

TEST(Dequantize, RefusesOutputsThatDoNotFit) {
    std::vector<float> x(64, 1.0f);
    const Quantized q("nvfp4", view_of(x, {2, 32}));
    Arena arena(64);
    Context context{arena};
    std::vector<float> out(48);
    EXPECT_THROW(dequantize(context, q.matrix(), view_of(out, {3, 16})), Error);
    std::vector<float> square(64);
    EXPECT_THROW(dequantize_operand_transposed(context, q.matrix(), view_of(square, {2, 32})), Error);
    std::vector<uint8_t> bytes(64);
    EXPECT_THROW(dequantize_operand(context, q.matrix(), view_of(bytes, {2, 32})), Error);
}

}  // namespace
}  // namespace nibble
