// What a backward makes again has the bits that the forward made: nothing that a step computes depends on how
// much of it is kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "nn/transformer.h"
#include "transformer_fixture.h"

namespace nibble {
namespace {

using namespace testing_models;

constexpr Recompute kLevels[] = {Recompute::norms, Recompute::mlp, Recompute::block};

struct Step {
    double loss = 0;
    std::vector<float> gradients;
    std::vector<float> history;       // of delayed scales
    std::map<std::string, int> seen;  // how often the observer saw each operand of each layer
    size_t memory = 0;                // of what it planned
};

// Two micro-steps of an optimizer step that is not the first, in the memory that they plan.
Step step_of(const Recipe& recipe, const ModelConfig& config, Recompute recompute,
             DType activations = DType::bf16) {
    Transformer model(config, recipe, {.activations = activations, .recompute = recompute});
    model.initialize(7);
    Batch batch(4, 24, config.vocab_size, 4);
    Step result;
    Arena arena;
    Context context{arena};
    context.seed = 5;
    const auto take = [&](uint32_t step) {
        const ArenaScope scope(arena);
        context.step = step;
        model.zero_gradients(context);
        model.begin_step(context);
        result.loss = 0;
        for (uint32_t micro_step = 0; micro_step < 2; ++micro_step) {
            context.micro_step = micro_step;
            const int64_t row = 2 * int64_t{micro_step};
            result.loss += model
                               .forward_backward(context, batch.tokens().slice(row, row + 2),
                                                 batch.targets().slice(row, row + 2), 0.25f)
                               .loss_sum;
        }
    };
    take(0);
    arena.commit();
    const Tensor history = model.amax_history();
    std::ranges::fill(history.span<float>(), 0.0f);
    take(2);
    model.observe([&](Context&, const QuantLinear::Observation& o) {
        ++result.seen[fmt::format("{} {}", o.layer, o.operand)];
    });
    take(3);
    for (const Parameter& p : model.parameters()) {
        const auto gradient = p.gradient.span<const float>();
        result.gradients.insert(result.gradients.end(), gradient.begin(), gradient.end());
    }
    const auto amaxes = history.span<const float>();
    result.history.assign(amaxes.begin(), amaxes.end());
    result.memory = arena.peak();
    return result;
}

Recipe recipe_of(const std::string& name) {
    if (name == "fp32") return fp32_recipe();
    if (name == "smooth_swiglu") return with_modifiers(find_recipe("fp8"), {"smooth-swiglu"});
    if (name == "one_block_kept") {
        Recipe recipe = find_recipe("quartet2");
        recipe.keep_last = 1;
        return recipe;
    }
    if (name == "delayed") {
        Recipe recipe = find_recipe("bf16");
        recipe.name = "delayed";
        for (const std::string_view operand_name : kOperandNames)
            operand(recipe, operand_name) = {Source::original, parse_spec("nvfp4 1x16 tensor=delayed")};
        return recipe;
    }
    return find_recipe(name);
}

class RecomputeUnder : public testing::TestWithParam<const char*> {};

TEST_P(RecomputeUnder, ChangesNoBit) {
    const bool is_fp32 = GetParam() == std::string("fp32");
    for (const Architecture architecture : {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
        const auto run = [&](Recompute level) {
            return step_of(recipe_of(GetParam()), small_qwen(architecture), level,
                           is_fp32 ? DType::f32 : DType::bf16);
        };
        const Step kept = run(Recompute::none);
        for (const Recompute level : kLevels) {
            const Step again = run(level);
            EXPECT_EQ(again.loss, kept.loss) << name_of(level);
            EXPECT_EQ(again.gradients, kept.gradients) << name_of(level);
            EXPECT_EQ(again.history, kept.history) << name_of(level);
            EXPECT_EQ(again.seen, kept.seen) << name_of(level);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Recipe, RecomputeUnder,
                         testing::Values("fp32", "bf16", "quartet2", "nvidia", "quartet", "dge-occ",
                                         "tetrajet2", "delayed", "smooth_swiglu", "one_block_kept"),
                         [](const auto& test) {
                             std::string name = test.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

TEST(Recompute, SavesMemoryLevelByLevel) {
    ModelConfig config = small_config();
    config.num_hidden_layers = 8;
    for (const char* recipe : {"bf16", "quartet2"}) {
        size_t before = step_of(find_recipe(recipe), config, Recompute::none).memory;
        for (const Recompute level : kLevels) {
            const size_t now = step_of(find_recipe(recipe), config, level).memory;
            EXPECT_LT(now, before) << recipe << ", " << name_of(level);
            before = now;
        }
    }
}

TEST(Recompute, EvaluatesToTheSameLoss) {
    const auto loss = [](Recompute level) {
        Transformer model(small_config(), find_recipe("quartet2"), {.recompute = level});
        model.initialize(7);
        Batch batch(2, 24, 64, 4);
        Session session;
        model.begin_step(session.context);
        return model.forward(session.context, batch.tokens(), batch.targets()).loss_sum;
    };
    for (const Recompute level : kLevels) EXPECT_EQ(loss(level), loss(Recompute::none));
}

TEST(Recompute, NamesTheFirstTensorThatOverflowsAsEver) {
    for (const Recompute level : kLevels) {
        Transformer model(small_config(), find_recipe("quartet2"), {.recompute = level});
        model.initialize(7);
        Batch batch(2, 16, 64, 8);
        Session session;
        EXPECT_EQ(model.first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f), "");
        for (float& value : model.parameter("layers.1.mlp.norm").master.span<float>()) value = 3e38f;
        EXPECT_EQ(model.first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f),
                  "output of layers.1.mlp.norm");
    }
}

}  // namespace
}  // namespace nibble
