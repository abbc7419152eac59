#include "quant/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/quantized.h"
#include "support/samples.h"
#include "support/specs.h"

namespace nibble {
namespace {

// The statistics of x [rows, cols] under a spec, or of its transpose [cols, rows].
QuantStatistics statistics_of(std::string_view spec, std::vector<float> x, int64_t rows, int64_t cols,
                              StatisticsOptions options = {}) {
    const test::Quantized q(spec, view_of(x, {rows, cols}));
    std::vector<float> stored = x;
    if (options.transposed)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < cols; ++k)
                stored[static_cast<size_t>(k * rows + r)] = x[static_cast<size_t>(r * cols + k)];
    for (float& value : stored) value /= options.scale;
    const SignBits signs = rotation_signs(q.matrix().spec, {});
    options.signs = &signs;
    Arena arena(1 << 23);
    Context context{arena};
    return measure_quantized(context, q.matrix(),
                             view_of(stored, options.transposed ? Shape({cols, rows}) : Shape({rows, cols})),
                             options);
}

TEST(QuantStatistics, CountClippedAndFlushedElements) {
    // A block of scale 1 (the largest E4M3 scale, 448, is 2688 over 6): 6.2 lies beyond its largest value, 6,
    // and 0.2 is nearer to 0 than to 0.5.
    std::vector<float> x(32, 0.0f);
    x[0] = 2688.0f;
    x[16] = 6.2f, x[17] = 0.2f, x[18] = -0.2f, x[19] = 3.0f;
    const QuantStatistics s = statistics_of("nvfp4 1x16", x, 1, 32);
    EXPECT_EQ(s.elements, 32);
    EXPECT_EQ(s.clipped, 1);
    EXPECT_EQ(s.flushed, 2);
    EXPECT_EQ(s.amax, 2688);
    EXPECT_NEAR(s.error, 0.2 * 0.2 * 3, 1e-5);
    EXPECT_NEAR(s.along, 6.2 * -0.2 - 2 * 0.2 * 0.2, 1e-5);
    EXPECT_EQ(s.blocks, 0);  // no choice between 4 and 6 is made
}

TEST(QuantStatistics, CountBlocksThatAreScaledToFour) {
    // Exact with their maximum at 4 (1, 2, 3, 4: at 6 they would be 1.5, 3, 4.5, 6), and at 6; and zeros.
    std::vector<float> x(64, 0.0f);
    x[0] = 1, x[1] = 2, x[2] = 3, x[3] = 4;
    x[16] = 1, x[17] = 2, x[18] = 3, x[19] = 6;
    x[32] = 1.5f, x[33] = 3, x[34] = 2, x[35] = 6;
    const QuantStatistics s = statistics_of("nvfp4 1x16 scale=four-six:mse", x, 1, 64);
    EXPECT_EQ(s.blocks, 3);
    EXPECT_EQ(s.blocks_to_four, 1);
    EXPECT_NEAR(s.share_to_four(), 1.0 / 3, 1e-12);
}

// Published share of blocks that four-six scales to 4 on normal numbers: 45 %.
TEST(QuantStatistics, FindThePublishedShareOfBlocksScaledToFour) {
    EXPECT_NEAR(
        statistics_of("nvfp4 1x16 scale=four-six:mse", test::normals(1 << 18), 128, 2048).share_to_four(),
        0.45, 0.01);
}

TEST(QuantStatistics, AreThoseOfTheDefinitionOverAnyNumberOfBands) {
    for (const std::string& spec : test::kSpecs) {
        if (parse_spec(spec).rotation != Rotation::none) continue;  // values() are then those after it
        const int64_t rows = 600, cols = 896;
        const std::vector<float> x = test::normals(rows * cols, 3);
        std::vector<float> copy = x;
        const std::vector<float> values = test::Quantized(spec, view_of(copy, {rows, cols})).values();
        double error = 0, power = 0, flushed = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            const double d = double{values[i]} - x[i];
            error += d * d, power += double{x[i]} * x[i], flushed += x[i] != 0 && values[i] == 0;
        }
        const QuantStatistics s = statistics_of(spec, x, rows, cols);
        EXPECT_NEAR(s.error, error, 1e-5 * error) << spec;
        EXPECT_NEAR(s.power, power, 1e-5 * power) << spec;
        EXPECT_EQ(s.flushed, flushed) << spec;
    }
}

// A rotation keeps the power, and moves the error by little: what is measured is in the rotated space.
TEST(QuantStatistics, OfRotatedSpecsAreTakenInTheRotatedSpace) {
    const std::vector<float> x = test::normals(100 * 256, 4);
    for (const char* spec : {"rht:32", "rht2:128", "hadamard:64@rows"}) {
        const std::string text = fmt::format("nvfp4 1x16 rotate={}", spec);
        EXPECT_NEAR(statistics_of(text, x, 100, 256).relative_mse(), 0.00904, 0.0004) << spec;
    }
}

TEST(QuantStatistics, OfATransposeAreThoseOfTheMatrix) {
    const std::vector<float> x = test::normals(70 * 100, 5);  // padded to 128 columns
    for (const char* spec : {"nvfp4 1x16", "nvfp4 1x16 rotate=rht:128"}) {
        const QuantStatistics a = statistics_of(spec, x, 70, 100);
        const QuantStatistics b = statistics_of(spec, x, 70, 100, {.transposed = true});
        EXPECT_EQ(a.error, b.error) << spec;
        EXPECT_EQ(a.power, b.power) << spec;
        EXPECT_EQ(a.flushed, b.flushed) << spec;
        EXPECT_EQ(a.elements, b.elements) << spec;
    }
}

TEST(QuantStatistics, FollowTheScaleDownToTheSmallestGradients) {
    const std::vector<float> x = test::normals(16 * 64, 6);
    const QuantStatistics a = statistics_of("nvfp4 1x16", x, 16, 64);
    std::vector<float> small = x;
    for (float& value : small) value *= 0x1p-90f;  // squares below the smallest float
    const QuantStatistics b = statistics_of("nvfp4 1x16", small, 16, 64);
    EXPECT_NEAR(b.relative_mse(), a.relative_mse(), 1e-6);
    EXPECT_NEAR(b.power, std::ldexp(a.power, -180), std::ldexp(a.power, -180) * 1e-6);
    const QuantStatistics c = statistics_of("nvfp4 1x16", x, 16, 64, {.scale = 0.25f});
    EXPECT_EQ(c.error, a.error);
}

TEST(QuantStatistics, GiveThePowerOfEachColumn) {
    std::vector<float> x(3 * 20, 0.0f);
    x[2] = 3, x[20 + 2] = 4, x[40 + 19] = 2;
    std::vector<double> power(32, -1);
    StatisticsOptions options;
    options.column_power = power.data();
    const QuantStatistics s = statistics_of("nvfp4 1x16", x, 3, 20, options);
    for (size_t k = 0; k < power.size(); ++k) EXPECT_EQ(power[k], k == 2 ? 25 : k == 19 ? 4 : 0) << k;
    EXPECT_EQ(s.power, 29);
    EXPECT_EQ(s.elements, 60);
}

TEST(QuantStatistics, DoNotDependOnTheNumberOfThreads) {
    const std::vector<float> x = test::normals(300 * 1024, 7);
    const int threads = thread_count();
    set_thread_count(1);
    const QuantStatistics a = statistics_of("nvfp4 1x16 rotate=rht:128", x, 300, 1024);
    set_thread_count(3);
    const QuantStatistics b = statistics_of("nvfp4 1x16 rotate=rht:128", x, 300, 1024);
    set_thread_count(threads);
    EXPECT_EQ(a.error, b.error);
    EXPECT_EQ(a.power, b.power);
    EXPECT_EQ(a.along, b.along);
}

TEST(QuantStatistics, PowersOfRowsAndColumnsAreScaledSquares) {
    std::vector<float> x = {3, 4, 0, 1};
    std::vector<double> out(2);
    row_powers(view_of(x, {2, 2}), 2.0f, out.data());
    EXPECT_EQ(out, (std::vector<double>{100, 4}));
    column_powers(view_of(x, {2, 2}), 2.0f, out.data());
    EXPECT_EQ(out, (std::vector<double>{36, 68}));
}

}  // namespace
}  // namespace nibble
