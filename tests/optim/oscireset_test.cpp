#include "optim/oscireset.h"

#include <gtest/gtest.h>

#include <cmath>

#include "optim/qema.h"
#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

// A weight and what a window sees of it.
struct Watched {
    explicit Watched(std::vector<float> values, int64_t columns) : w(std::move(values)), cols(columns) {
        for (auto* state : {&weight_path, &quantized_path, &previous}) state->resize(w.size(), -1.0f);
        oscireset_begin(context, tensor(w), seen());
    }
    Tensor tensor(std::vector<float>& values) const {
        return view_of(values, {static_cast<int64_t>(values.size()) / cols, cols});
    }
    Oscillation seen() { return {tensor(weight_path), tensor(quantized_path), tensor(previous)}; }
    void watch(const QuantSpec& spec) { oscireset_watch(context, spec, {}, tensor(w), seen()); }
    int64_t reset(const QuantSpec& spec, double threshold) {
        return oscireset_reset(context, spec, {}, threshold, tensor(w), seen());
    }

    std::vector<float> w, weight_path, quantized_path, previous;
    int64_t cols;
    Arena arena{1 << 20};
    Context context{arena};
};

const QuantSpec kMxfp4 = parse_spec("mxfp4 1x32 scale=rceil");

// Column 0 holds the block's scale at 1 (its maximum is 6); column 1 goes to and fro across the border
// between the codes of 1 and 1.5; column 2 goes a long way inside a code; the others stay.
Watched oscillating() {
    std::vector<float> w(32, 0.1f);
    w[0] = 6.0f;
    w[1] = 1.24f;
    w[2] = 2.0f;
    Watched watched(w, 32);
    for (int update = 1; update <= 10; ++update) {
        watched.w[1] = update % 2 == 0 ? 1.24f : 1.26f;
        watched.w[2] += 0.02f;
        watched.watch(kMxfp4);
    }
    return watched;
}

TEST(OsciReset, AddsUpTheWayOfTheWeightAndOfItsQuantisedValue) {
    Watched watched = oscillating();
    EXPECT_NEAR(watched.weight_path[1], 10 * 0.02, 1e-5);
    EXPECT_FLOAT_EQ(watched.quantized_path[1], 10 * 0.5);
    EXPECT_NEAR(watched.weight_path[2], 10 * 0.02, 1e-5);
    EXPECT_EQ(watched.quantized_path[2], 0.0f);
    EXPECT_EQ(watched.weight_path[0], 0.0f);
    EXPECT_EQ(watched.previous, watched.w);
}

TEST(OsciReset, SetsWhatOscillatesAndNothingElse) {
    Watched watched = oscillating();
    std::vector<float> expected = watched.w;
    expected[1] = 1.0f;                      // of 1.24
    EXPECT_EQ(watched.reset(kMxfp4, 8), 1);  // the ratio is 25
    EXPECT_EQ(watched.w, expected);
}

TEST(OsciReset, LeavesWhatOscillatesBelowItsThreshold) {
    Watched watched = oscillating();
    EXPECT_EQ(watched.reset(kMxfp4, 26), 0);
}

// Weights that were reset are values of their blocks: exactly Q(w) under the scales that the reset used.
TEST(OsciReset, L28_LeavesWeightsThatAreTheirQuantisedValues) {
    for (const char* text :
         {"nvfp4 1x16", "nvfp4 16x16", "nvfp4 1x16 scale=four-six:mse", "mxfp4 1x32 scale=rceil"}) {
        const QuantSpec spec = parse_spec(text);
        Watched watched(test::normals(8 * 64), 64);
        const std::vector<float> quantized = test::Quantized(spec, watched.tensor(watched.w)).values();
        std::fill(watched.quantized_path.begin(), watched.quantized_path.end(), 1.0f);
        EXPECT_EQ(watched.reset(spec, 8), 8 * 64) << text;
        EXPECT_EQ(watched.w, quantized) << text;
    }
}

// A block of which all weights were reset has, in MXFP4, the same values again. In NVFP4 the tensor's maximum
// moves by its own rounding, so it is the same to FP32's rounding only.
TEST(OsciReset, L28_LeavesWeightsThatQuantiseToThemselves) {
    const auto largest_change = [](const char* text) {
        const QuantSpec spec = parse_spec(text);
        Watched watched(test::normals(8 * 64), 64);
        std::fill(watched.quantized_path.begin(), watched.quantized_path.end(), 1.0f);
        watched.reset(spec, 8);
        const std::vector<float> again = test::Quantized(spec, watched.tensor(watched.w)).values();
        float largest = 0;
        for (size_t i = 0; i < again.size(); ++i)
            largest = std::max(largest, std::fabs(again[i] - watched.w[i]));
        return largest;
    };
    EXPECT_EQ(largest_change("mxfp4 1x32 scale=rceil"), 0.0f);
    EXPECT_EQ(largest_change("mxfp4 1x32 scale=floor"), 0.0f);
    EXPECT_LT(largest_change("nvfp4 1x16"), 1e-6f);
    EXPECT_LT(largest_change("nvfp4 16x16"), 1e-6f);
}

TEST(OsciReset, BeginsItsWindowsAtTheirTimes) {
    const OsciReset options{.start = 0.5, .period = 20, .window = 5};
    std::vector<int64_t> begins;
    for (int64_t update = 1; update <= 100; ++update)
        if (oscireset_begins(options, update, 100)) begins.push_back(update);
    EXPECT_EQ(begins, (std::vector<int64_t>{50, 70, 90}));
    EXPECT_TRUE(oscireset_begins({.start = 0}, 1, 100));
}

TEST(QemaAverage, BeginsWithTheWeightAndFollowsItSlowly) {
    std::vector<float> w = {1.0f, -2.0f}, average = {7.0f, 7.0f};
    Arena arena(64);
    Context context{arena};
    qema_update(context, 0.75, true, view_of(w, {2}), view_of(average, {2}));
    EXPECT_EQ(average, w);
    w = {2.0f, 2.0f};
    qema_update(context, 0.75, false, view_of(w, {2}), view_of(average, {2}));
    EXPECT_EQ(average, (std::vector<float>{1.25f, -1.0f}));
}

}  // namespace
}  // namespace nibble
