#include "nn/transformer.h"

#include "nn/finite.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class TransformerOnGpu : public BothDevices {
  protected:
    static ModelConfig config() {
        ModelConfig config;
        config.architecture = Architecture::qwen3;
        config.hidden_size = 64;
        config.intermediate_size = 96;
        config.vocab_size = 65;
        config.num_hidden_layers = 2;
        config.num_attention_heads = 4;
        config.num_key_value_heads = 2;
        config.head_dim = 16;
        config.max_position_embeddings = 32;
        return config;
    }
    static std::vector<double> values_from(const Tensor& x) {
        const Buffer values(x.dtype, x.shape);
        Arena none(Device::cuda);
        copy(Context{none}, x, values.tensor());
        return values_of(values.tensor());
    }
};

TEST_F(TransformerOnGpu, BeginsWithTheWeightsOfTheCpus) {
    Transformer cpu(config(), find_recipe("bf16"), {}),
        gpu(config(), find_recipe("bf16"), {.device = Device::cuda});
    cpu.initialize(3);
    gpu.initialize(3);
    for (size_t i = 0; i < cpu.parameters().size(); ++i) {
        const Parameter &expected = cpu.parameters()[i], &got = gpu.parameters()[i];
        EXPECT_EQ(got.master.device, Device::cuda);
        EXPECT_EQ(got.gradient.device, Device::cuda);
        EXPECT_EQ(values_from(got.master), values_of(expected.master)) << got.name;
    }
}

TEST_F(TransformerOnGpu, ClearsItsGradients) {
    Transformer model(config(), find_recipe("bf16"), {.device = Device::cuda});
    const Twin values = Twin::random(DType::f32, {64}, 1);
    Arena none(Device::cuda);
    const Context context{none};
    const Tensor& gradient = model.parameter("norm").gradient;
    copy(context, values.gpu.tensor(), gradient);
    model.zero_gradients(context);
    EXPECT_EQ(values_from(gradient), std::vector<double>(64, 0.0));
}

TEST_F(TransformerOnGpu, MakesTheLossAndTheGradientsOfTheCpu) {
    for (const Architecture architecture : {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
        ModelConfig shape = config();
        shape.architecture = architecture;
        Recipe recipe = find_recipe("bf16");
        for (const std::string_view name : kOperandNames) operand(recipe, name).spec = parse_spec("fp32");
        Transformer cpu(shape, recipe, {.activations = DType::f32});
        Transformer gpu(shape, recipe, {.activations = DType::f32, .device = Device::cuda});
        cpu.initialize(3);
        gpu.initialize(3);
        std::vector<int32_t> tokens, next;
        for (int32_t i = 0; i < 48; ++i) {
            tokens.push_back(i * i % 65);
            next.push_back((i + 1) * (i + 1) % 65);
        }
        const Twin inputs = Twin::of<int32_t>({3, 16}, tokens), targets = Twin::of<int32_t>({3, 16}, next);
        HeadLoss losses[2];
        run([&](Context& context) {
            const Device on = context.device;
            Transformer& model = on == Device::cpu ? cpu : gpu;
            EXPECT_EQ(model.first_non_finite(context, inputs.on(on), targets.on(on), 1.0f / 48), "");
            const ArenaScope scope(context.arena);
            model.zero_gradients(context);
            model.begin_step(context);
            losses[on == Device::cuda] =
                model.forward_backward(context, inputs.on(on), targets.on(on), 1.0f / 48);
        });
        EXPECT_NEAR(losses[1].loss_sum, losses[0].loss_sum, 1e-5 * losses[0].loss_sum);
        for (size_t i = 0; i < cpu.parameters().size(); ++i) {
            const Parameter& expected = cpu.parameters()[i];
            const auto values = values_of(expected.gradient);
            expect_close(values_from(gpu.parameters()[i].gradient), values, 1e-4, 1e-4 * largest(values),
                         "gradient of " + expected.name);
        }
    }
}

TEST_F(TransformerOnGpu, FindsOneElementThatIsNotFinite) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const float bad :
             {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
            auto values = random_values(1, 700'001);
            Arena none(Device::cuda);
            EXPECT_TRUE(is_finite(Context{none}, Twin(buffer_of(dtype, {700'001}, values)).gpu.tensor()));
            values.back() = bad;
            EXPECT_FALSE(is_finite(Context{none}, Twin(buffer_of(dtype, {700'001}, values)).gpu.tensor()));
        }
    }
}

}  // namespace
}  // namespace nibble
