#include "study/align_study.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

ModelConfig small_config() {
    ModelConfig config;
    config.hidden_size = 64;
    config.intermediate_size = 96;
    config.vocab_size = 64;
    config.num_hidden_layers = 3;
    config.num_attention_heads = config.num_key_value_heads = 4;
    config.head_dim = 16;
    config.max_position_embeddings = 32;
    config.initializer_range = 0.1f;
    return config;
}

// A random model in FP32 activations, and a batch of 128 random tokens.
class AlignmentOf : public testing::Test {
  protected:
    AlignmentOf()
        : model_(small_config(), find_recipe("bf16"), {.activations = DType::f32}),
          batch_(random_batch(4, 32, 64, 1)) {
        model_.initialize(1);
    }
    RecipeAlignment measure(const Recipe& recipe, int draws = 1) {
        return AlignmentStudy(model_, batch_.tokens.tensor(), batch_.targets.tensor()).measure(recipe, draws);
    }
    // A bf16 forward, and one spec for all four operands of the backward.
    static Recipe backward(std::string_view spec) {
        Recipe recipe = find_recipe("bf16");
        for (OperandSpec* o : {&recipe.dgrad_dy, &recipe.dgrad_w, &recipe.wgrad_dy, &recipe.wgrad_x})
            o->spec = parse_spec(spec);
        return recipe;
    }
    static const Alignment& at(const RecipeAlignment& result, int block, std::string_view name) {
        for (const AlignedGradient& g : result.gradients)
            if (g.block == block && g.name == name) return g.alignment;
        fail("no gradient {} of block {}", name, block);
    }

    Transformer model_;
    TokenBatch batch_;
};

TEST_F(AlignmentOf, Bf16IsPerfect) {
    const RecipeAlignment result = measure(find_recipe("bf16"), 4);
    EXPECT_EQ(result.draws, 1);
    ASSERT_EQ(result.gradients.size(), 3u * 5);
    for (const AlignedGradient& g : result.gradients) {
        EXPECT_NEAR(g.alignment.cosine, 1, 1e-12) << g.block << g.name;
        EXPECT_NEAR(g.alignment.misalignment, 0, 1e-12) << g.block << g.name;
        EXPECT_EQ(g.alignment.error, 0) << g.block << g.name;
        EXPECT_EQ(g.alignment.bias, 0) << g.block << g.name;
    }
}

// What one backward product does, the next one carries on.
TEST_F(AlignmentOf, TheResidualStreamFallsWithDepth) {
    const RecipeAlignment result = measure(backward("mxfp4 1x32 scale=three-quarters"));
    for (const int block : {0, 1}) {
        EXPECT_LT(at(result, block, "residual").cosine, at(result, block + 1, "residual").cosine);
        EXPECT_GT(at(result, block, "residual").misalignment, at(result, block + 1, "residual").misalignment);
        EXPECT_GT(at(result, block, "residual").error, at(result, block + 1, "residual").error);
    }
}

TEST_F(AlignmentOf, NearestRoundingIsAllBias) {
    const RecipeAlignment result = measure(backward("mxfp4 1x32 scale=three-quarters"), 8);
    EXPECT_EQ(result.draws, 1);
    for (const AlignedGradient& g : result.gradients) {
        EXPECT_GT(g.alignment.misalignment, 0.001) << g.block << g.name;
        EXPECT_EQ(g.alignment.bias, g.alignment.error) << g.block << g.name;
        EXPECT_EQ(g.alignment.mean_cosine, g.alignment.cosine) << g.block << g.name;
    }
}

TEST_F(AlignmentOf, StochasticRoundingAveragesOut) {
    const RecipeAlignment result = measure(backward("nvfp4 1x16 range=16/17 round=stochastic"), 64);
    EXPECT_EQ(result.draws, 64);
    for (const AlignedGradient& g : result.gradients) {
        EXPECT_GT(g.alignment.error, 0.05) << g.block << g.name;
        EXPECT_LT(g.alignment.bias, g.alignment.error / 4) << g.block << g.name;
        EXPECT_NEAR(g.alignment.misalignment, 0, g.alignment.error / 4) << g.block << g.name;
        EXPECT_GT(g.alignment.mean_cosine, g.alignment.cosine) << g.block << g.name;
    }
}

TEST_F(AlignmentOf, OneDrawCannotTellBias) {
    const RecipeAlignment result = measure(backward("nvfp4 1x16 round=stochastic"), 1);
    EXPECT_TRUE(std::isnan(at(result, 0, "mlp.down").bias));
    EXPECT_TRUE(std::isnan(at(result, 0, "mlp.down").mean_cosine));
    EXPECT_TRUE(std::isfinite(at(result, 0, "mlp.down").cosine));
}

// The last block's gradients come before any that a recipe touches.
TEST_F(AlignmentOf, BlocksThatAreKeptIsThatOfBf16) {
    Recipe recipe = backward("mxfp4 1x32 scale=three-quarters");
    recipe.keep_last = 1;
    const RecipeAlignment result = measure(recipe);
    for (const AlignedGradient& g : result.gradients) {
        if (g.block == 2) {
            EXPECT_EQ(g.alignment.error, 0) << g.name;
        } else {
            EXPECT_GT(g.alignment.error, 0.01) << g.block << g.name;
        }
    }
}

// A factor along the gradient is lost or gained; its direction is kept.
TEST_F(AlignmentOf, TellsNormFromDirection) {
    const RecipeAlignment result = measure(backward("mxfp4 1x32 scale=three-quarters"));
    for (const AlignedGradient& g : result.gradients) {
        if (g.name == "residual") continue;  // its cosine is of tokens
        const auto& [cosine, misalignment, norm, error, mean_cosine, bias] = g.alignment;
        EXPECT_NEAR(1 - misalignment, norm * cosine, 1e-9) << g.block << g.name;
        EXPECT_NEAR(error * error, 1 + norm * norm - 2 * norm * cosine, 1e-9) << g.block << g.name;
    }
}

TEST(RandomBatch, FollowsEachTokenByTheNext) {
    const TokenBatch batch = random_batch(2, 100, 50, 3);
    const Tensor tokens = batch.tokens.tensor(), targets = batch.targets.tensor();
    int distinct = 0;
    for (int64_t row = 0; row < 2; ++row) {
        const int32_t *x = tokens.as<int32_t>() + row * 100, *y = targets.as<int32_t>() + row * 100;
        for (int64_t i = 0; i < 100; ++i) {
            EXPECT_TRUE(0 <= y[i] && y[i] < 50);
            if (i > 0) {
                EXPECT_EQ(x[i], y[i - 1]);
            }
            distinct += tokens.as<int32_t>()[i] != tokens.as<int32_t>()[100 + i];
        }
    }
    EXPECT_GT(distinct, 100);
}

}  // namespace
}  // namespace nibble
