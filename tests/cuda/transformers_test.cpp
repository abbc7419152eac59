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
    // The largest difference of a logit, over the root of the mean square of all.
    double worst_logit(const Recipe& recipe, DType activations) {
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
        double worst = 0, square = 0;
        for (size_t i = 0; i < logits.size(); ++i) {
            worst = std::max(worst, std::fabs(double{logits[i]} - theirs[i]));
            square += double{theirs[i]} * theirs[i] / static_cast<double>(logits.size());
        }
        EXPECT_GT(square, 0.25);
        RecordProperty("largest_difference", fmt::format("{:.2e}", worst / std::sqrt(square)));
        return worst / std::sqrt(square);
    }
};

// FP32 throughout, in another order of sums; the CPU differs by 4e-6.
TEST_P(TransformersAgreesOnGpu, OnLogitsInFp32) { EXPECT_LE(worst_logit(fp32_recipe(), DType::f32), 2e-5); }

// Activations and operands are rounded to BF16 a few times in a block, by 2^-9 each.
TEST_P(TransformersAgreesOnGpu, OnLogitsInBf16) {
    EXPECT_LE(worst_logit(find_recipe("bf16"), DType::bf16), 0.05);
}

INSTANTIATE_TEST_SUITE_P(Models, TransformersAgreesOnGpu, testing::Values("untied", "tied", "qwen2", "qwen3"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace nibble
