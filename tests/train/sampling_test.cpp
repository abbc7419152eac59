#include "train/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "core/error.h"

namespace nibble {
namespace {

std::map<int32_t, int> counts(const std::vector<float>& logits, const SamplingOptions& options,
                              int draws = 20'000) {
    std::map<int32_t, int> result;
    for (int i = 0; i < draws; ++i) ++result[sample_token(logits, options, 7, static_cast<uint64_t>(i))];
    return result;
}

// Probabilities 1/2, 1/4, 1/8, 1/8.
const std::vector<float> kLogits = {std::log(0.125f), std::log(0.5f), std::log(0.125f), std::log(0.25f)};

TEST(Sampling, DrawsByTheSoftmaxOfTheLogits) {
    auto drawn = counts(kLogits, {});
    EXPECT_NEAR(drawn[1], 10'000, 300);  // four standard deviations
    EXPECT_NEAR(drawn[3], 5'000, 250);
    EXPECT_NEAR(drawn[0], 2'500, 190);
    EXPECT_NEAR(drawn[2], 2'500, 190);
}

TEST(Sampling, SharpensWithALowTemperature) {
    auto drawn = counts(kLogits, {.temperature = 0.5});
    // Squares of the probabilities: 16 : 4 : 1 : 1.
    EXPECT_NEAR(drawn[1], 20'000 * 16 / 22, 260);
    EXPECT_NEAR(drawn[3], 20'000 * 4 / 22, 220);
}

TEST(Sampling, TakesTheMostLikelyAtTemperatureZeroAndTheLowestIdOfEquals) {
    EXPECT_EQ(counts(kLogits, {.temperature = 0}), (std::map<int32_t, int>{{1, 20'000}}));
    EXPECT_EQ(sample_token(std::vector<float>{1, 3, 3}, {.temperature = 0}, 0, 0), 1);
}

TEST(Sampling, KeepsTheKMostLikely) {
    auto drawn = counts(kLogits, {.top_k = 3});
    EXPECT_EQ(drawn.size(), 3u);
    EXPECT_EQ(drawn.count(2), 0u);  // of two equal ones the lower id stays
    EXPECT_NEAR(drawn[1], 20'000 * 4 / 7, 290);
    EXPECT_EQ(counts(kLogits, {.top_k = 1}).size(), 1u);
    EXPECT_EQ(counts(kLogits, {.top_k = 99}).size(), 4u);
}

TEST(Sampling, KeepsTheFewestThatTogetherReachP) {
    EXPECT_EQ(counts(kLogits, {.top_p = 0.5}).size(), 1u);
    EXPECT_EQ(counts(kLogits, {.top_p = 0.6}).size(), 2u);
    EXPECT_EQ(counts(kLogits, {.top_p = 0.8}).size(), 3u);
    EXPECT_EQ(counts(kLogits, {.top_p = 0.0}).size(), 1u);
}

TEST(Sampling, DependsOnSeedAndIndexAlone) {
    const std::vector<float> logits(1000, 0.0f);
    EXPECT_EQ(sample_token(logits, {}, 1, 2), sample_token(logits, {}, 1, 2));
    EXPECT_NE(sample_token(logits, {}, 1, 2), sample_token(logits, {}, 1, 3));
    EXPECT_NE(sample_token(logits, {}, 1, 2), sample_token(logits, {}, 2, 2));
}

TEST(Sampling, RefusesLogitsThatAreNotFinite) {
    EXPECT_THROW(sample_token(std::vector<float>{0, NAN}, {}, 0, 0), Error);
}

}  // namespace
}  // namespace nibble
