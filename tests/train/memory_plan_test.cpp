// Plans of memory, and what they propose where it is not enough. Nothing is allocated: the models are large.
#include "train/memory_plan.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace nibble {
namespace {

MemoryNeeds large(const char* recipe = "quartet2") {
    MemoryNeeds needs;
    needs.model.hidden_size = 1024;
    needs.model.intermediate_size = 4096;
    needs.model.vocab_size = 8192;
    needs.model.num_hidden_layers = 16;
    needs.model.num_attention_heads = needs.model.num_key_value_heads = 8;
    needs.model.head_dim = 128;
    needs.model.max_position_embeddings = 512;
    needs.recipes = {find_recipe(recipe)};
    needs.sequences = 8;
    needs.length = 512;
    return needs;
}

TEST(MemoryPlan, CountsEveryParameterFourTimes) {
    const MemoryPlan plan = plan_memory(large());
    EXPECT_EQ(plan.masters, 4 * static_cast<size_t>(large().model.parameters()));
    EXPECT_EQ(plan.gradients, plan.masters);
    EXPECT_EQ(plan.moments, 2 * plan.masters);
    EXPECT_EQ(plan.total(), 4 * plan.masters + plan.batch + plan.weights + plan.activations + plan.scratch);
}

TEST(MemoryPlan, KeepsOfEachBlockWhatTheDocumentationSays) {
    const auto tokens = size_t{8} * 512;
    const size_t c = 1024, a = 1024, q = 3072, f = 4096, heads = 8, blocks = 16;
    const size_t residual = 4 * tokens * c, rest = 2 * tokens * (q + a) + 4 * tokens * (heads + 2);
    const size_t gate_up = 4 * tokens * f, packed = tokens * (2 * c + a + f) * 9 / 16;
    const auto activations = [](const char* recipe, Recompute recompute) {
        MemoryNeeds needs = large(recipe);
        needs.options.recompute = recompute;
        return static_cast<double>(plan_memory(needs).activations);
    };
    const auto expect = [&](double got, size_t of_block) {
        // Tensor scales and alignment; the first block's input is the embedding's output.
        EXPECT_NEAR(got / static_cast<double>(blocks * of_block), 1.0, 0.03);
    };
    expect(activations("quartet2", Recompute::none), residual + rest + gate_up + packed);
    expect(activations("bf16", Recompute::none), residual + rest + gate_up + 2 * tokens * (2 * c + f));
    for (const char* recipe : {"quartet2", "bf16"}) {
        expect(activations(recipe, Recompute::norms), residual + rest + gate_up);
        expect(activations(recipe, Recompute::mlp), residual + rest);
        EXPECT_LT(activations(recipe, Recompute::block), static_cast<double>(blocks * residual / 2));
    }
}

TEST(MemoryPlan, ProposesTheFirstChangeThatIsEnough) {
    const MemoryNeeds needs = large();
    const size_t all = plan_memory(needs).total();
    const auto change = [&](size_t limit) {
        const std::optional<MemoryNeeds> found = smallest_change(needs, limit);
        if (!found) return std::string("nothing");
        EXPECT_LE(plan_memory(*found).total(), limit);
        return fmt::format("{} {} {} {}", name_of(found->options.recompute), found->sequences,
                           name_of(found->moments), name_of(found->options.gradients));
    };
    const auto with = [&](Recompute recompute, int64_t sequences, DType moments = DType::f32,
                          DType gradients = DType::f32) {
        MemoryNeeds changed = needs;
        changed.options.recompute = recompute;
        changed.options.gradients = gradients;
        changed.sequences = sequences;
        changed.moments = moments;
        return plan_memory(changed).total();
    };
    EXPECT_EQ(change(all), "none 8 F32 F32");
    EXPECT_EQ(change(all - 1), "norms 8 F32 F32");
    EXPECT_EQ(change(with(Recompute::mlp, 8)), "mlp 8 F32 F32");
    EXPECT_EQ(change(with(Recompute::block, 8)), "block 8 F32 F32");
    EXPECT_EQ(change(with(Recompute::block, 1)), "block 1 F32 F32");
    EXPECT_EQ(change(with(Recompute::block, 1, DType::bf16)), "block 1 BF16 F32");
    const size_t least = with(Recompute::block, 1, DType::bf16, DType::bf16);
    EXPECT_EQ(change(least), "block 1 BF16 BF16");
    EXPECT_EQ(change(least - 1), "nothing");
}

TEST(MemoryPlan, CountsOffloadedMomentsOnTheHost) {
    MemoryNeeds needs = large();
    needs.offload = true;
    const MemoryPlan plan = plan_memory(needs);
    EXPECT_EQ(plan.moments, 0U);
    EXPECT_EQ(plan.on_host, 2 * plan.masters);
    EXPECT_NE(memory_table(to_json(plan)).find("on_host"), std::string::npos);
}

}  // namespace
}  // namespace nibble
