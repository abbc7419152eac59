#include "train/speed_of_light.h"

#include <gtest/gtest.h>

#include "train/status_line.h"

namespace nibble {
namespace {

ModelConfig small_model() {
    ModelConfig c;
    c.hidden_size = 128, c.intermediate_size = 384, c.vocab_size = 2048;
    c.num_hidden_layers = 4, c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 32;
    return c;
}

TEST(SpeedOfLight, CountsTheWeightsThatAreMultiplied) {
    // A block: q 128x128, k and v 64x128, out 128x128, gate, up and down 384x128 each. Once the head.
    const int64_t block = 128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 384 * 128;
    ModelConfig c = small_model();
    EXPECT_EQ(matmul_parameters(c), 4 * block + 2048 * 128);
    c.tie_word_embeddings = true;
    EXPECT_EQ(matmul_parameters(c), 4 * block + 2048 * 128);
}

TEST(SpeedOfLight, CountsEveryProductOfAStep) {
    const ModelConfig c = small_model();
    const int64_t T = 8;
    double forward = 0;  // of a sequence
    forward += 2.0 * static_cast<double>(T * matmul_parameters(c));
    for (int64_t query = 0; query < T; ++query)  // keys 0 .. query, in q·k and p·v, 4 heads of 32, 4 layers
        forward += 2.0 * 2.0 * static_cast<double>((query + 1) * 4 * 32 * 4);
    EXPECT_DOUBLE_EQ(forward_flops_per_token(c, T) * T, forward);
    EXPECT_DOUBLE_EQ(training_flops_per_token(c, T) * T, 3 * forward);
}

TEST(SpeedOfLight, IsMeasured) { EXPECT_GT(measure_gemm_peak(Device::cpu, 0.01), 1e6); }

TEST(StatusLine, WritesTimesAsClocksDo) {
    EXPECT_EQ(clock_text(0), "0:00");
    EXPECT_EQ(clock_text(75.2), "1:15");
    EXPECT_EQ(clock_text(3700), "1:01:40");
    EXPECT_EQ(clock_text(-1), "0:00");
}

}  // namespace
}  // namespace nibble
