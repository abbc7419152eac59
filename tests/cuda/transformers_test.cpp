// Whole models on a GPU against what transformers says of them (scripts/record_transformers_reference.py):
// the recorded logits that the CPU's are compared with, too (tests/nn/pytorch_test.cpp).
#include <cmath>

#include "nn/transformer_fixture.h"
#include "support/golden.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

using namespace testing_models;

class TransformersAgreesOnGpu : public OnGpu, public testing::WithParamInterface<const char*> {
  protected:
    // Differences of logits, over the root of the mean square of all.
    struct Differences {
        double largest, root_mean_square;
    };
    Differences differences(const Recipe& recipe, DType activations) {
        const std::string name = GetParam(), prefix = name + ".";
        const SafetensorsFile file =
            test::golden(name.starts_with("qwen") ? "transformers_qwen" : "transformers_llama");
        Transformer model(parse_model_config(file.metadata_value(prefix + "config"), name), recipe,
                          {.activations = activations, .device = Device::cuda});
        load_weights(model, file, prefix);
        const Tensor recorded = file.tensor(prefix + "logits");
        const Tensor tokens = put(file.tensor(prefix + "tokens")), out = allocate(DType::f32, recorded.shape);
        const ArenaScope scope(gpu().arena);
        model.begin_step(gpu());
        model.logits(gpu(), tokens, out);
        const std::vector<float> logits = get<float>(out);
        const auto theirs = recorded.span<const float>();
        double largest = 0, error = 0, square = 0;
        for (size_t i = 0; i < logits.size(); ++i) {
            const double d = double{logits[i]} - theirs[i], count = static_cast<double>(logits.size());
            largest = std::max(largest, std::fabs(d));
            error += d * d / count;
            square += double{theirs[i]} * theirs[i] / count;
        }
        EXPECT_GT(square, 0.25);
        RecordProperty("largest_difference", fmt::format("{:.2e}", largest / std::sqrt(square)));
        RecordProperty("root_mean_square", fmt::format("{:.2e}", std::sqrt(error / square)));
        return {largest / std::sqrt(square), std::sqrt(error / square)};
    }
};

// FP32 throughout, in another order of sums; the CPU differs by 4e-6.
TEST_P(TransformersAgreesOnGpu, OnLogitsInFp32) {
    EXPECT_LE(differences(fp32_recipe(), DType::f32).largest, 2e-5);
}

// Every activation is rounded by up to 2^-9; the CPU differs by 0.011 to 0.017.
TEST_P(TransformersAgreesOnGpu, OnLogitsInBf16) {
    EXPECT_LE(differences(find_recipe("bf16"), DType::bf16).root_mean_square, 0.03);
}

INSTANTIATE_TEST_SUITE_P(Models, TransformersAgreesOnGpu, testing::Values("untied", "tied", "qwen2", "qwen3"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace nibble
