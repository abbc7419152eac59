#include "train/monitor.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/transformer.h"
#include "support/measured.h"
#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// --- arXiv 2505.19115: where noise begins to cost most ---

TEST(GradientToNoise, L17_ProgressOfAStepIsThatOfTheModel) {
    const double at = kLeastGradientToNoise;
    test::expect_published("progress at the threshold", 0.75, 1e-12, step_progress(at));
    test::expect_published("at twice the noise", 0.4286, 5e-5, step_progress(at / 2));
    test::expect_published("at half of it", 0.9231, 5e-5, step_progress(2 * at));
}

TEST(GradientToNoise, L17_ProgressFallsFastestAtTheThreshold) {
    const double d = 1000, gradient = 1, h = 1e-5;
    const auto progress = [&](double sigma) { return step_progress(gradient / (sigma * std::sqrt(d))); };
    // The fall is steepest where its own slope, a second difference, changes its sign.
    double low = 1e-3, high = 0.1;
    while (high - low > 1e-10) {
        const double sigma = (low + high) / 2;
        const bool steepens = progress(sigma + h) - 2 * progress(sigma) + progress(sigma - h) < 0;
        (steepens ? low : high) = sigma;
    }
    test::expect_published("noise at the steepest fall, d = 1000", gradient / std::sqrt(3 * d), 5e-8, low);
}

// dW = dY^T X against that of operands in 4 bits, over many draws of their coins.
TEST(GradientToNoise, L18_NoiseOfAProductIsPredictedFromItsOperands) {
    const int64_t tokens = 256, out = 64, in = 48;
    const QuantSpec spec = parse_spec("nvfp4 1x16 round=stochastic range=16/17");
    std::vector<float> dy = test::normals(out * tokens, 1), x = test::normals(in * tokens, 2);  // transposed
    const auto product_error = [&](const std::vector<float>& a, const std::vector<float>& b) {
        double sum = 0;
        for (int64_t i = 0; i < out; ++i) {
            for (int64_t j = 0; j < in; ++j) {
                double d = 0;
                for (int64_t t = 0; t < tokens; ++t)
                    d += double{a[static_cast<size_t>(i * tokens + t)]} *
                             b[static_cast<size_t>(j * tokens + t)] -
                         double{dy[static_cast<size_t>(i * tokens + t)]} *
                             x[static_cast<size_t>(j * tokens + t)];
                sum += d * d;
            }
        }
        return sum;
    };
    Arena arena(1 << 20);
    Context context{arena};
    double measured = 0, predicted = 0;
    constexpr int kDraws = 64;
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
        const test::Quantized a(spec, view_of(dy, {out, tokens}), {1, draw, 0, 0, Gemm::wgrad, Side::a});
        const test::Quantized b(spec, view_of(x, {in, tokens}), {1, draw, 0, 0, Gemm::wgrad, Side::b});
        std::vector<double> dy_power(tokens), x_power(tokens);
        StatisticsOptions of_dy, of_x;
        of_dy.column_power = dy_power.data(), of_x.column_power = x_power.data();
        const double mse_dy =
            measure_quantized(context, a.matrix(), view_of(dy, {out, tokens}), of_dy).relative_mse();
        const double mse_x =
            measure_quantized(context, b.matrix(), view_of(x, {in, tokens}), of_x).relative_mse();
        double power = 0;
        for (size_t t = 0; t < dy_power.size(); ++t) power += dy_power[t] * x_power[t];
        predicted += predicted_noise(mse_dy, mse_x, power);
        measured += product_error(a.values(), b.values());
    }
    test::expect_published("measured over predicted, mean of 64 draws", 1, 0.005, measured / predicted);
}

// --- what the monitor makes of its samples ---

class MonitorOfASmallModel : public testing::Test {
  protected:
    static ModelConfig shape() {
        ModelConfig config;
        config.hidden_size = config.intermediate_size = 32;
        config.vocab_size = 32;
        config.num_hidden_layers = 1;
        config.num_attention_heads = config.num_key_value_heads = 2;
        config.head_dim = 16;
        config.max_position_embeddings = 16;
        return config;
    }
    // The monitor after samples with these ratios of its four layers.
    void restore(const std::vector<std::vector<double>>& ratios, int64_t in_phase) {
        monitor_.restore({{"samples", ratios.size()},
                          {"samples_in_phase", in_phase},
                          {"recent", ratios},
                          {"last",
                           {{"step", 50},
                            {"noise", "predicted"},
                            {"gradient_to_noise", {{"model", 2.5}}},
                            {"layers", Json::array()}}}});
    }
    Transformer model_{shape(), find_recipe("quartet2"), {}};
    Monitor monitor_{model_, 10, Monitor::Noise::predicted, 16};
};

TEST_F(MonitorOfASmallModel, SamplesEveryTenthStep) {
    EXPECT_FALSE(monitor_.is_due(1));
    EXPECT_TRUE(monitor_.is_due(10));
    EXPECT_FALSE(monitor_.is_due(11));
}

TEST_F(MonitorOfASmallModel, ComparesTheMedianLayerOfFiveSamples) {
    const std::vector<double> usual = {1, 2, 4, 8}, outlier = {100, 100, 100, 100};
    restore({usual, usual, outlier, usual}, 4);
    EXPECT_FALSE(monitor_.gradient_to_noise().has_value());  // four samples are too few
    restore({usual, usual, outlier, usual, usual}, 5);
    EXPECT_EQ(monitor_.gradient_to_noise().value(), 3);
    monitor_.begin_phase();
    EXPECT_FALSE(monitor_.gradient_to_noise().has_value());
}

TEST_F(MonitorOfASmallModel, LeavesOutLayersWithoutNoise) {
    restore(std::vector<std::vector<double>>(5, {NAN, NAN, 1.5, 2.5}), 5);
    EXPECT_EQ(monitor_.gradient_to_noise().value(), 2);
    EXPECT_EQ(monitor_.summary().at("layers"), 2);
    const Json state = monitor_.state();
    monitor_.restore(Json::parse(state.dump()));  // as a checkpoint holds it
    EXPECT_EQ(monitor_.state().dump(), state.dump());
}

TEST_F(MonitorOfASmallModel, NamesTheLayersWithTheLowestRatios) {
    EXPECT_TRUE(monitor_.summary().is_null());
    restore({{3, 1, 2, 0.5}}, 1);
    const Json summary = monitor_.summary();
    EXPECT_EQ(summary.at("layers_below"), 2);
    EXPECT_EQ(summary.at("lowest").at(0).at("layer"), "layers.0.mlp.down");
    EXPECT_EQ(summary.at("lowest").at(1).at("layer"), "layers.0.attention.out");
    EXPECT_NE(health_text(summary).find("2 of 4 layers below 1.73"), std::string::npos);
}

}  // namespace
}  // namespace nibble
