#include "nn/embedding.h"

#include "support/both_devices.h"

namespace nibble {
namespace {

class EmbeddingOnGpu : public BothDevices {
  protected:
    // Tokens of a text: few are frequent, many are not there.
    static Twin tokens_of(int64_t count, int64_t vocabulary) {
        std::vector<int32_t> tokens;
        for (int64_t t = 0; t < count; ++t)
            tokens.push_back(static_cast<int32_t>((t % 3 == 0 ? 1 : t * t * 31) % vocabulary));
        return Twin::of<int32_t>({count}, tokens);
    }
};

const Shape kWeights[] = {{100, 64}, {1000, 1536}, {257, 36}, {7, 21}, {1, 8}};  // [V, C]

TEST_P(EmbeddingOnGpu, ForwardTakesTheRowsOfTheTokens) {
    for (const Shape& shape : kWeights) {
        const Twin tokens = tokens_of(201, shape[0]);
        const Twin weight = Twin::random(DType::f32, shape, 1), y = Twin::output(GetParam(), {201, shape[1]});
        run([&](Context& context) {
            const Device on = context.device;
            embedding_forward(context, tokens.on(on), weight.on(on), y.on(on));
        });
        y.expect_equal("y");
    }
}

TEST_P(EmbeddingOnGpu, BackwardAddsInTheOrderOfTokensToTheBit) {
    for (const Shape& shape : kWeights) {
        for (const int64_t count : {1, 300, 5000}) {
            const Twin tokens = tokens_of(count, shape[0]);
            const Twin dy = Twin::random(GetParam(), {count, shape[1]}, 1);
            const Twin dweight = Twin::random(DType::f32, shape, 2);
            run([&](Context& context) {
                const Device on = context.device;
                embedding_backward(context, dy.on(on), tokens.on(on), dweight.on(on));
            });
            dweight.expect_equal("dweight");
        }
    }
}

TEST_P(EmbeddingOnGpu, ATokenOutsideTheVocabularyIsNanAndHasNoGradient) {
    const Twin tokens = Twin::of<int32_t>({4}, {2, -1, 3, 1 << 30}), y = Twin::output(GetParam(), {4, 8});
    const Twin weight = Twin::random(DType::f32, {3, 8}, 1), dweight = Twin::zeros(DType::f32, {3, 8});
    const Twin dy = Twin::random(GetParam(), {4, 8}, 2);
    run_on(Device::cuda, [&](Context& context) {
        embedding_forward(context, tokens.gpu.tensor(), weight.gpu.tensor(), y.gpu.tensor());
        embedding_backward(context, dy.gpu.tensor(), tokens.gpu.tensor(), dweight.gpu.tensor());
    });
    const Buffer made = y.received(), gradient = dweight.received();
    const auto values = values_of(made.tensor()), expected = values_of(dy.cpu.tensor());
    const auto gradients = values_of(gradient.tensor());
    for (size_t c = 0; c < 8; ++c) {
        EXPECT_TRUE(std::isfinite(values[c]));
        for (const size_t t : {1, 2, 3}) EXPECT_TRUE(std::isnan(values[t * 8 + c]));
        EXPECT_EQ(gradients[c], 0.0);
        EXPECT_EQ(gradients[16 + c], expected[c]);
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, EmbeddingOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
