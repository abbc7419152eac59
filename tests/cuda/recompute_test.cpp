// On a GPU, too, what a backward makes again has the bits that the forward made.
#include "nn/transformer.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class RecomputeOnGpu : public BothDevices {};

struct Step {
    double loss = 0;
    std::vector<std::vector<float>> gradients;
};

Step step_of(const Recipe& recipe, Architecture architecture, Recompute recompute) {
    ModelConfig config;
    config.architecture = architecture;
    config.hidden_size = 256;
    config.intermediate_size = 384;
    config.vocab_size = 300;
    config.num_hidden_layers = 4;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 64;
    config.max_position_embeddings = 128;
    Transformer model(config, recipe, {.device = Device::cuda, .recompute = recompute});
    model.initialize(3);
    std::vector<int32_t> tokens, next;
    for (int32_t i = 0; i < 4 * 128; ++i) {
        tokens.push_back(i * i % 300);
        next.push_back((i + 1) * (i + 1) % 300);
    }
    const Twin inputs = Twin::of<int32_t>({4, 128}, tokens), targets = Twin::of<int32_t>({4, 128}, next);
    const Buffer fault(DType::u32, {1}, Device::cuda);
    Arena arena(Device::cuda);
    Context context{arena};
    context.fault = fault.tensor().as<uint32_t>();
    context.seed = 5;
    context.step = 2;
    Step result;
    const auto take = [&] {
        const ArenaScope scope(arena);
        model.zero_gradients(context);
        model.begin_step(context);
        for (uint32_t micro_step = 0; micro_step < 2; ++micro_step) {
            context.micro_step = micro_step;
            const int64_t row = 2 * int64_t{micro_step};
            result.loss += model
                               .forward_backward(context, inputs.gpu.tensor().slice(row, row + 2),
                                                 targets.gpu.tensor().slice(row, row + 2), 1.0f / 512)
                               .loss_sum;
        }
    };
    take();
    arena.commit();
    result.loss = 0;
    take();
    for (const Parameter& p : model.parameters()) {
        std::vector<float> values(static_cast<size_t>(p.gradient.count()));
        copy(context, p.gradient, view_of(values, p.gradient.shape));
        result.gradients.push_back(std::move(values));
    }
    return result;
}

TEST_F(RecomputeOnGpu, ChangesNoBit) {
    for (const char* name : {"bf16", "quartet2", "nvidia", "quartet", "fp4-all-the-way"}) {
        for (const Architecture architecture :
             {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
            const Recipe recipe = find_recipe(name);
            const Step kept = step_of(recipe, architecture, Recompute::none);
            for (const Recompute level : {Recompute::norms, Recompute::mlp, Recompute::block}) {
                const Step again = step_of(recipe, architecture, level);
                EXPECT_EQ(again.loss, kept.loss) << name << ", " << name_of(level);
                EXPECT_TRUE(again.gradients == kept.gradients) << name << ", " << name_of(level);
            }
        }
    }
}

}  // namespace
}  // namespace nibble
