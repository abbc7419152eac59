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
            const LossRow row{.factor = 3.0f, .scale = c.scale, .is_bf16 = is_bf16, .rounding = c.rounding};
            run_on(Device::cuda, [&](Context& context) {
                if (context.planning()) return;
                cuda::loss_rows(context, row, logits.gpu.tensor(), targets.gpu.tensor(), losses.gpu.tensor(),
                                gradients.gpu.tensor());
            });
            with_elements(gradients.cpu.tensor(), [&](auto* to) {
                for (int64_t t = 0; t < kRows; ++t) {
                    const int32_t target = targets.cpu.tensor().as<int32_t>()[t];
                    if (target == kIgnoredTarget) {
                        losses.cpu.tensor().as<float>()[t] = 0.0f;
                        std::fill_n(to + t * vocabulary, vocabulary, std::remove_pointer_t<decltype(to)>{});
                        continue;
                    }
                    losses.cpu.tensor().as<float>()[t] =
                        loss_row(row, logits.cpu.tensor().as<float>() + t * vocabulary, vocabulary, target,
                                 to + t * vocabulary);
                }
            });
            losses.expect_close(2e-6, 2e-6, "losses");
            gradients.expect_close(c.tolerance, double{c.absolute} * double{c.scale}, "gradients");
        }
    }
}

// The same logits in F32 on the CPU, and in BF16 on the GPU, where gradients are written beside them, over
// them and not at all. Vocabularies as above, and one whose rows lie in shared memory if the cache is small.
TEST_P(CrossEntropyOnGpu, ARowsLogitsInBf16AreReplacedByTheirGradients) {
    if (GetParam() != DType::bf16) GTEST_SKIP() << "gradients of logits in BF16 are BF16";
    constexpr int64_t kRows = 11;
    for (const int64_t vocabulary : {512, 33, 50257, 70001, 1001, 1002, 7, 1}) {
        for (const LossRow::Rounding rounding : {LossRow::Rounding::none, LossRow::Rounding::e5m2}) {
            const bool is_e5m2 = rounding == LossRow::Rounding::e5m2;
            const LossRow row{
                .factor = 3.0f, .scale = is_e5m2 ? 57344.0f : 0.125f, .is_bf16 = true, .rounding = rounding};
            const Twin logits = Twin::random(DType::bf16, {kRows, vocabulary}, 1),
                       targets = Twin::of<int32_t>({kRows}, targets_of(kRows, vocabulary)),
                       losses = Twin::output(DType::f32, {kRows}), again = Twin::output(DType::f32, {kRows}),
                       alone = Twin::output(DType::f32, {kRows}),
                       gradients = Twin::output(DType::bf16, {kRows, vocabulary});
            std::vector<float> wide(static_cast<size_t>(kRows * vocabulary));
            std::ranges::transform(logits.cpu.tensor().span<const Bf16>(), wide.begin(), bf16_decode);
            run_on(Device::cuda, [&](Context& context) {
                if (context.planning()) return;
                const Tensor from = logits.gpu.tensor(), of = targets.gpu.tensor();
                cuda::loss_rows(context, row, from, of, alone.gpu.tensor(), {});
                cuda::loss_rows(context, row, from, of, losses.gpu.tensor(), gradients.gpu.tensor());
                cuda::loss_rows(context, row, from, of, again.gpu.tensor(), from);
            });
            for (int64_t t = 0; t < kRows; ++t) {
                const int32_t target = targets.cpu.tensor().as<int32_t>()[t];
                Bf16* const to = gradients.cpu.tensor().as<Bf16>() + t * vocabulary;
                float& loss = losses.cpu.tensor().as<float>()[t];
                if (target == kIgnoredTarget) {
                    loss = 0.0f;
                    std::fill_n(to, vocabulary, Bf16{});
                } else {
                    loss = loss_row(row, wide.data() + t * vocabulary, vocabulary, target, to);
                }
            }
            losses.expect_close(2e-6, 2e-6, "losses");
            gradients.expect_close(is_e5m2 ? 0.25 : 1.0 / 128, is_e5m2 ? 0x1p-16 : 1e-7 * double{row.scale},
                                   "gradients");
            const auto received = [](const Twin& twin) { return values_of(twin.received().tensor()); };
            EXPECT_EQ(received(again), received(losses)) << vocabulary;
            EXPECT_EQ(received(alone), received(losses)) << vocabulary;
            EXPECT_EQ(received(logits), received(gradients)) << vocabulary;
        }
    }
}

TEST_P(CrossEntropyOnGpu, ATargetOutsideTheVocabularyMakesTheLossNan) {
    const Twin logits = Twin::random(DType::f32, {2, 40}, 1), losses = Twin::output(DType::f32, {2});
    const Twin targets = Twin::of<int32_t>({2}, {40, 39}), gradients = Twin::output(GetParam(), {2, 40});
    run_on(Device::cuda, [&](Context& context) {
        if (context.planning()) return;
        cuda::loss_rows(context, {}, logits.gpu.tensor(), targets.gpu.tensor(), losses.gpu.tensor(),
                        gradients.gpu.tensor());
    });
    const Buffer loss = losses.received(), gradient = gradients.received();
    EXPECT_TRUE(std::isnan(loss.tensor().as<float>()[0]));
    EXPECT_TRUE(std::isfinite(loss.tensor().as<float>()[1]));
    EXPECT_TRUE(std::isnan(values_of(gradient.tensor())[0]));
    EXPECT_TRUE(std::isfinite(values_of(gradient.tensor())[40]));
}

// ||got - expected|| / ||expected||.
double relative_error(const Twin& twin) {
    const Buffer back = twin.received();
    const auto got = values_of(back.tensor()), expected = values_of(twin.cpu.tensor());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += (got[i] - expected[i]) * (got[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
}

struct HeadCase {
    int64_t rows, cols, vocabulary;
};

class HeadLossOnGpu : public CrossEntropyOnGpu {
  protected:
    static void check(const HeadCase& head, DType logits) {
        const auto [rows, cols, vocabulary] = head;
        // Logits in BF16 are those of exact sums, so that both devices round the same numbers.
        const auto operand = [&](DType dtype, Shape shape, uint64_t seed) {
            return Twin(logits == DType::bf16 ? exact_buffer(dtype, shape, seed)
                                              : random_buffer(dtype, shape, seed));
        };
        for (const HeadOperands operands : {HeadOperands::plain, HeadOperands::fp8}) {
            const HeadOptions options{.operands = operands, .logits = logits};
            const Twin x = operand(GetParam(), {rows, cols}, 1);
            const Twin weight = operand(DType::f32, {vocabulary, cols}, 2);
            const Twin targets = Twin::of<int32_t>({rows}, targets_of(rows, vocabulary));
            const Twin loss_rows = Twin::output(DType::f32, {rows}),
                       dx = Twin::output(GetParam(), {rows, cols});
            const Twin dweight = Twin::random(DType::f32, {vocabulary, cols}, 3);
            HeadLoss losses[2], again[2];
            run([&](Context& context) {
                const Device on = context.device;
                losses[on == Device::cuda] =
                    head_loss(context, x.on(on), weight.on(on), targets.on(on),
                              context.planning() ? Tensor{} : loss_rows.on(on), options);
                again[on == Device::cuda] =
                    head_loss_backward(context, x.on(on), weight.on(on), targets.on(on), 0.25f, dx.on(on),
                                       dweight.on(on), options);
            });
            const bool is_exact = GetParam() == DType::f32 && operands == HeadOperands::plain;
            EXPECT_EQ(losses[1].count, losses[0].count);
            EXPECT_NEAR(losses[1].loss_sum, losses[0].loss_sum, 1e-5 * losses[0].loss_sum);
            EXPECT_EQ(again[1].loss_sum, losses[1].loss_sum);
            loss_rows.expect_close(1e-5, 1e-5, "losses");
            // dx is a sum of 600,000 terms in FP32. Where sums differ by their order, a gradient of the
            // logits may round the other way.
            EXPECT_LT(relative_error(dx), is_exact ? 5e-5 : 6e-3) << "dx of " << vocabulary;
            EXPECT_LT(relative_error(dweight), is_exact ? 5e-5 : 6e-3) << "dweight of " << vocabulary;
        }
    }
};

TEST_P(HeadLossOnGpu, HasTheLossAndTheGradientsOfTheCpu) {
    for (const HeadCase& head : {HeadCase{70, 64, 512}, {33, 40, 77}}) check(head, DType::f32);
}

// The rows need several tiles of logits and chunks of gradients.
TEST_P(HeadLossOnGpu, IsThatOfTheCpuForRowsOfManyLogits) { check({300, 8, 600'000}, DType::f32); }

TEST_P(HeadLossOnGpu, HasTheLossAndTheGradientsOfTheCpuWithLogitsInBf16) {
    if (GetParam() != DType::bf16) GTEST_SKIP() << "logits in BF16 are those of x in BF16";
    for (const HeadCase& head : {HeadCase{70, 64, 512}, {33, 40, 33}, {9, 16, 50257}})
        check(head, DType::bf16);
}

// Of which several tiles are one chunk.
TEST_P(HeadLossOnGpu, IsThatOfTheCpuForRowsOfManyLogitsInBf16) {
    if (GetParam() != DType::bf16) GTEST_SKIP() << "logits in BF16 are those of x in BF16";
    check({130, 8, 600'001}, DType::bf16);
}

TEST_P(CrossEntropyOnGpu, TheHeadsLossesOfAStepAddUp) {
    const Twin x = Twin::random(GetParam(), {70, 64}, 1), weight = Twin::random(DType::f32, {96, 64}, 2),
               targets = Twin::of<int32_t>({70}, targets_of(70, 96)), dx = Twin::output(GetParam(), {70, 64}),
               dweight = Twin::zeros(DType::f32, {96, 64});
    HeadLoss loss, of_step;
    run_on(Device::cuda, [&](Context& context) {
        const auto tensor = [](const Twin& twin) { return twin.on(Device::cuda); };
        const ArenaScope scope(context.arena);
        const Tensor totals = context.arena.allocate(DType::f64, {2});
        if (!context.planning()) fill_zero(context, totals);
        loss = head_loss_backward(context, tensor(x), tensor(weight), tensor(targets), 1.0f, tensor(dx),
                                  tensor(dweight));
        for (int micro_step = 0; micro_step < 3; ++micro_step)
            head_loss_backward(context, tensor(x), tensor(weight), tensor(targets), 1.0f, tensor(dx),
                               tensor(dweight), totals);
        of_step = read_loss(context, totals);
    });
    EXPECT_EQ(of_step.loss_sum, loss.loss_sum + loss.loss_sum + loss.loss_sum);
    EXPECT_EQ(of_step.count, 3 * loss.count);
}

TEST_P(CrossEntropyOnGpu, LogitsAreThoseOfTheCpu) {
    for (const HeadOperands operands : {HeadOperands::plain, HeadOperands::fp8}) {
        const Twin x = Twin::random(GetParam(), {5, 72}, 1), weight = Twin::random(DType::f32, {130, 72}, 2);
        const Twin logits = Twin::output(DType::f32, {5, 130});
        run([&](Context& context) {
            const Device on = context.device;
            head_logits(context, x.on(on), weight.on(on), logits.on(on), {.operands = operands});
        });
        EXPECT_LT(relative_error(logits), 1e-5);
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, CrossEntropyOnGpu, kActivations, name_of_dtype);
INSTANTIATE_TEST_SUITE_P(Activations, HeadLossOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
