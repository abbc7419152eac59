#include "study/quantizer_study.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/samples.h"

namespace nibble {
namespace {

QuantizerFigures figures_of(std::string_view spec, std::vector<float> x, int64_t cols) {
    return study_quantizer(parse_spec(spec), view_of(x, {static_cast<int64_t>(x.size()) / cols, cols}));
}

TEST(QuantizerStudy, CountsWhatIsFlushedAndWhatIsClipped) {
    std::vector<float> x(16, 0.0f);
    x[0] = 2688.0f;
    x[1] = 100.0f;  // a code of 0.22
    const QuantizerFigures f = figures_of("nvfp4 1x16", x, 16);
    EXPECT_EQ(f.flushed, 1.0 / 16);
    EXPECT_EQ(f.clipped, 0.0);
    x.resize(10);  // padded to 16
    EXPECT_EQ(figures_of("nvfp4 1x16", x, 10).flushed, 1.0 / 10);
    x.assign(32, 0.0f);
    x[0] = 7.0f;  // scale=floor: the scale is 1, the largest value 6
    const QuantizerFigures g = figures_of("mxfp4 1x32 scale=floor", x, 32);
    EXPECT_EQ(g.clipped, 1.0 / 32);
    EXPECT_EQ(g.flushed, 0.0);
}

TEST(QuantizerStudy, OfExactValuesFindsNoError) {
    std::vector<float> x = {2688, -1344, 672, 224, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    const QuantizerFigures f = figures_of("nvfp4 1x16", x, 16);
    EXPECT_EQ(f.relative_mse, 0.0);
    EXPECT_EQ(f.misalignment, 0.0);
    EXPECT_TRUE(std::isinf(f.effective_bits));
}

TEST(QuantizerStudy, ComparesInTheRotatedSpaceAndPadsRows) {
    const std::vector<float> x = test::normals(64 * 100);
    for (const char* spec : {"nvfp4 1x16 rotate=rht:128", "nvfp4 1x16 scale=eden rotate=rht2:64",
                             "nvfp4 1x16 rotate=rht:128@rows"}) {
        EXPECT_NEAR(figures_of(spec, x, 100).relative_mse, .009, .0015) << spec;
    }
}

}  // namespace
}  // namespace nibble
