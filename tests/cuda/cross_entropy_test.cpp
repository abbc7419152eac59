#include "nn/cross_entropy.h"

#include "nn/cuda_forms.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class CrossEntropyOnGpu : public BothDevices {
  protected:
    // One in five does not count.
    static std::vector<int32_t> targets_of(int64_t rows, int64_t vocabulary) {
        std::vector<int32_t> targets;
        for (int64_t t = 0; t < rows; ++t)
            targets.push_back(t % 5 == 2 ? kIgnoredTarget : static_cast<int32_t>((t * 37 + 5) % vocabulary));
        return targets;
    }
};

// Rows that begin at every offset from 16 bytes, shorter than an access, and longer than a block's reach.
constexpr int64_t kVocabularies[] = {512, 50257, 1001, 1002, 7, 1};

TEST_P(CrossEntropyOnGpu, ARowsLossAndGradientAreThoseOfTheCpu) {
    constexpr int64_t kRows = 11;
    struct Case {
        LossRow::Rounding rounding;
        float scale, tolerance, absolute;  // of gradients, relative to the scale
    };
    const bool is_bf16 = GetParam() == DType::bf16;
    const Case cases[] = {
        {LossRow::Rounding::none, 0.125f, is_bf16 ? 1.0f / 128 : 2e-5f, 1e-7f},
        {LossRow::Rounding::bf16, 0.125f, 1.0f / 128, 1e-7f},
        {LossRow::Rounding::e5m2, 57344.0f, 0.25f, 0x1p-16f / 57344},
    };
    for (const int64_t vocabulary : kVocabularies) {
        for (const Case& c : cases) {
            const Twin logits = Twin::random(DType::f32, {kRows, vocabulary}, 1);
            const Twin targets = Twin::of<int32_t>({kRows}, targets_of(kRows, vocabulary));
            const Twin losses = Twin::output(DType::f32, {kRows});
            const Twin gradients = Twin::output(GetParam(), {kRows, vocabulary});
            const Twin factor = Twin::of<float>({2}, {1.5f, 2.0f});
            const LossRow row{.factor = 1.0f, .scale = c.scale, .is_bf16 = is_bf16, .rounding = c.rounding};
            run_on(Device::cuda, [&](Context& context) {
                if (context.planning()) return;
                const auto* factors = factor.gpu.tensor().as<float>();
                cuda::loss_rows(context, row, logits.gpu.tensor(), {factors, factors + 1},
                                targets.gpu.tensor(), losses.gpu.tensor(), gradients.gpu.tensor());
            });
            LossRow scaled = row;
            scaled.factor = 3.0f;
            with_elements(gradients.cpu.tensor(), [&](auto* to) {
                for (int64_t t = 0; t < kRows; ++t) {
                    const int32_t target = targets.cpu.tensor().as<int32_t>()[t];
                    if (target == kIgnoredTarget) {
                        losses.cpu.tensor().as<float>()[t] = 0.0f;
                        std::fill_n(to + t * vocabulary, vocabulary, std::remove_pointer_t<decltype(to)>{});
                        continue;
                    }
                    losses.cpu.tensor().as<float>()[t] =
                        loss_row(scaled, logits.cpu.tensor().as<float>() + t * vocabulary, vocabulary, target,
                                 to + t * vocabulary);
                }
            });
            losses.expect_close(2e-6, 2e-6, "losses");
            gradients.expect_close(c.tolerance, double{c.absolute} * double{c.scale}, "gradients");
        }
    }
}

TEST_P(CrossEntropyOnGpu, ATargetOutsideTheVocabularyMakesTheLossNan) {
    const Twin logits = Twin::random(DType::f32, {2, 40}, 1), losses = Twin::output(DType::f32, {2});
    const Twin targets = Twin::of<int32_t>({2}, {40, 39}), gradients = Twin::output(GetParam(), {2, 40});
    run_on(Device::cuda, [&](Context& context) {
        if (context.planning()) return;
        cuda::loss_rows(context, {}, logits.gpu.tensor(), {}, targets.gpu.tensor(), losses.gpu.tensor(),
                        gradients.gpu.tensor());
    });
    const Buffer loss = losses.received(), gradient = gradients.received();
    EXPECT_TRUE(std::isnan(loss.tensor().as<float>()[0]));
    EXPECT_TRUE(std::isfinite(loss.tensor().as<float>()[1]));
    EXPECT_TRUE(std::isnan(values_of(gradient.tensor())[0]));
    EXPECT_TRUE(std::isfinite(values_of(gradient.tensor())[40]));
}

INSTANTIATE_TEST_SUITE_P(Activations, CrossEntropyOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
