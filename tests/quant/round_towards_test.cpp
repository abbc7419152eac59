#include "quant/round_towards.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

// The values of x, quantised and then rounded towards `target`.
std::vector<float> rounded(std::string_view text, std::vector<float> x, std::vector<float> target,
                           int64_t cols, const SignBits& signs = {}) {
    const QuantSpec spec = parse_spec(text);
    const Shape shape{static_cast<int64_t>(x.size()) / cols, cols};
    QuantizeOptions options;
    options.signs = &signs;
    const test::Quantized q(spec, view_of(x, shape), {}, options);
    QuantizedMatrix matrix = q.matrix();  // the same memory
    Arena arena(1 << 16);
    Context context{arena};
    round_towards(context, view_of(x, shape), view_of(target, shape), signs, matrix);
    return q.values();
}

// A block of MXFP4 whose scale is 1: 6 comes first, then these values and 0.
std::vector<float> block_of(std::initializer_list<float> values) {
    std::vector<float> x(32, 0.0f);
    x[0] = 6.0f;
    std::copy(values.begin(), values.end(), x.begin() + 1);
    return x;
}

TEST(RoundTowards, TakesTheNeighbourThatIsNearerToTheTarget) {
    const std::vector<float> x = block_of({1.1f, 1.1f, -1.1f, -1.1f, 4.5f, 0.2f, -0.2f});
    const std::vector<float> target = block_of({1.4f, 0.9f, -1.3f, -0.3f, 7.0f, -3.0f, 3.0f});
    EXPECT_EQ(rounded("mxfp4 1x32 scale=rceil", x, target, 32),
              block_of({1.5f, 1.0f, -1.5f, -1.0f, 6.0f, 0.0f, 0.0f}));
}

TEST(RoundTowards, NeverLeavesTheNeighboursOfTheValue) {
    const std::vector<float> x = block_of({1.1f, 2.0f, 0.0f});
    EXPECT_EQ(rounded("mxfp4 1x32 scale=rceil", x, block_of({5.0f, 5.0f, 5.0f}), 32),
              block_of({1.5f, 2.0f, 0.0f}));
    EXPECT_EQ(rounded("mxfp4 1x32 scale=rceil", x, block_of({-5.0f, -5.0f, -5.0f}), 32),
              block_of({1.0f, 2.0f, 0.0f}));
}

TEST(RoundTowards, KeepsTheCodeHalfwayBetweenNeighbours) {
    const std::vector<float> target = block_of({1.25f, 1.25f});
    EXPECT_EQ(rounded("mxfp4 1x32 scale=rceil", block_of({1.1f, 1.4f}), target, 32), block_of({1.0f, 1.5f}));
}

// Rounding to nearest is rounding towards the value itself.
TEST(RoundTowards, ItselfIsRoundingToNearest) {
    for (const char* text :
         {"nvfp4 1x16", "nvfp4 16x16", "nvfp4 1x16 scale=four-six:mse", "mxfp4 1x32 scale=floor",
          "mxfp4 1x32 scale=three-quarters", "nvfp4 1x16 rotate=hadamard:16",
          "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"}) {
        std::vector<float> x = test::normals(20 * 72);
        const std::vector<float> nearest = test::Quantized(text, view_of(x, {20, 72})).values();
        const std::vector<float> towards = rounded(text, x, x, 72);
        size_t differ = 0;  // where FP32's rounding decides that two neighbours are equally near
        for (size_t i = 0; i < nearest.size(); ++i) differ += nearest[i] != towards[i];
        EXPECT_LE(differ, nearest.size() / 1000) << text;
    }
}

TEST(RoundTowards, HappensInTheRotatedSpace) {
    const std::vector<float> x = test::normals(4 * 64), target = test::normals(4 * 64, 2);
    SignBits signs;
    for (size_t j = 0; j < 64; j += 3) signs.set(j);
    const char* text = "nvfp4 1x16 rotate=rht:64 signs=step";
    std::vector<float> rotated_x = x, rotated_target = target;
    Arena arena(64);
    Context context{arena};
    rotate(context, 64, signs, view_of(rotated_x, {4, 64}));
    rotate(context, 64, signs, view_of(rotated_target, {4, 64}));
    EXPECT_EQ(rounded(text, x, target, 64, signs), rounded("nvfp4 1x16", rotated_x, rotated_target, 64));
}

TEST(RoundTowards, RefusesATargetOfAnotherShape) {
    EXPECT_THROW(rounded("nvfp4 1x16", std::vector<float>(64, 1.0f), std::vector<float>(32, 1.0f), 32),
                 Error);
}

}  // namespace
}  // namespace nibble
