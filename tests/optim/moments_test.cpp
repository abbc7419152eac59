// AdamW with its moments in BF16, and with gradients in BF16.
#include "optim/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "optim/optim.h"

namespace nibble {
namespace {

TEST(StochasticBf16, KeepsWhatBf16Holds) {
    for (const float x : {0.0f, -0.0f, 1.0f, -3.5f, 0x1p-130f, 0x1.fep100f})
        for (const int coin : {0, 1, 0x8000, 0xffff})
            EXPECT_EQ(bf16_decode(bf16_round_stochastic(x, static_cast<uint16_t>(coin))), x);
}

TEST(StochasticBf16, GoesUpForAsManyCoinsAsTheFractionSays) {
    // Between 1 and 1 + 2^-7 lie 2^16 floats: one above 1 + k 2^-23 goes up for k of 2^16 coins.
    for (const int k : {1, 0x1234, 0x8000, 0xffff}) {
        for (const float sign : {1.0f, -1.0f}) {
            const float x = sign * (1.0f + static_cast<float>(k) * 0x1p-23f);
            int up = 0;
            for (int coin = 0; coin < 65536; ++coin) {
                const float y = bf16_decode(bf16_round_stochastic(x, static_cast<uint16_t>(coin)));
                ASSERT_TRUE(y == sign || y == sign * (1 + 0x1p-7f)) << y;
                up += y != sign;
            }
            EXPECT_EQ(up, k);
        }
    }
}

// One tensor of 1000 weights, trained on gradients that a test gives.
class Trained {
  public:
    explicit Trained(const AdamWOptions& options, DType of_gradient = DType::f32, uint64_t seed = 1)
        : master_(DType::f32, {kCount}), gradient_(of_gradient, {kCount}), seed_(seed) {
        optimizer_.emplace(std::vector<OptimizedTensor>{{"w", master_.tensor(), gradient_.tensor(), true}},
                           options);
    }
    void update(int64_t t, float gradient, float step = 0) {
        with_elements(gradient_.tensor(), [&]<typename Element>(Element* g) {
            for (int64_t i = 0; i < kCount; ++i) {
                const float value = gradient + step * static_cast<float>(i % 7);
                if constexpr (std::is_same_v<Element, Bf16>)
                    g[i] = bf16_encode(value);
                else
                    g[i] = round_to_bf16(value);
            }
        });
        Arena none(0);
        Context context{none};
        context.seed = seed_;
        optimizer_->update(context, t, 1e-3);
    }
    std::vector<float> weights() const {
        const auto w = master_.tensor().span<float>();
        return {w.begin(), w.end()};
    }
    const AdamW::State& state() const { return optimizer_->state()[0]; }
    double mean_of(const Tensor& moment) const {
        double sum = 0;
        with_elements(moment, [&](const auto* m) {
            for (int64_t i = 0; i < kCount; ++i) sum += to_float(m[i]);
        });
        return sum / kCount;
    }

    static constexpr int64_t kCount = 1000;

  private:
    Buffer master_, gradient_;
    uint64_t seed_;
    std::optional<AdamW> optimizer_;
};

AdamWOptions in_bf16(double beta2 = 0.95) {
    AdamWOptions options;
    options.beta2 = beta2;
    options.moments = DType::bf16;
    return options;
}

TEST(AdamWInBf16, KeepsMomentsOfHalfTheSize) {
    const Trained trained(in_bf16());
    EXPECT_EQ(trained.state().m.dtype, DType::bf16);
    EXPECT_EQ(trained.state().v.dtype, DType::bf16);
    EXPECT_EQ(AdamW::moment_bytes({1000, 3}, DType::bf16) * 2, AdamW::moment_bytes({1000, 3}, DType::f32));
}

TEST(AdamWInBf16, SecondMomentFollowsWhereNearestRoundingWouldStandStill) {
    // (1 - 0.999) (g² - v) is less than half a step of BF16 once v is within 1/4 of g².
    AdamWOptions wide;
    wide.beta2 = 0.999;
    Trained narrow(in_bf16(0.999)), reference(wide);
    for (int t = 1; t <= 3000; ++t) {
        narrow.update(t, 0.5f);
        reference.update(t, 0.5f);
    }
    const double expected = reference.mean_of(reference.state().v);
    EXPECT_NEAR(expected, 0.25 * (1 - std::pow(0.999, 3000)), 1e-4);
    EXPECT_NEAR(narrow.mean_of(narrow.state().v) / expected, 1.0, 0.01);
}

TEST(AdamWInBf16, MovesWeightsAsFp32MomentsDoButForTheRounding) {
    Trained narrow(in_bf16()), reference(AdamWOptions{});
    for (int t = 1; t <= 50; ++t) {
        narrow.update(t, 0.5f - 0.01f * static_cast<float>(t), 0.1f);
        reference.update(t, 0.5f - 0.01f * static_cast<float>(t), 0.1f);
    }
    const std::vector<float> got = narrow.weights(), expected = reference.weights();
    // By about 50 lr in all. The errors of the moments, 2^-8 of them at each rounding, have mean zero.
    double sum = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_NEAR(got[i], expected[i], 3e-3);
        sum += double{got[i]} - double{expected[i]};
    }
    EXPECT_NEAR(sum / static_cast<double>(got.size()), 0, 2e-4);
}

TEST(AdamWInBf16, RepeatsToTheBitAndDependsOnTheSeed) {
    const auto weights = [](uint64_t seed) {
        Trained trained(in_bf16(), DType::f32, seed);
        for (int t = 1; t <= 3; ++t) trained.update(t, 0.3f, 0.01f);
        return trained.weights();
    };
    EXPECT_EQ(weights(1), weights(1));
    EXPECT_NE(weights(1), weights(2));
}

TEST(AdamWInBf16, TakesGradientsInBf16) {
    for (const AdamWOptions& options : {AdamWOptions{}, in_bf16()}) {
        Trained narrow(options, DType::bf16), wide(options, DType::f32);
        for (int t = 1; t <= 3; ++t) {
            narrow.update(t, 0.3f, 0.01f);
            wide.update(t, 0.3f, 0.01f);
        }
        EXPECT_EQ(narrow.weights(), wide.weights());
    }
}

TEST(AdamWInBf16, IsRefusedInOtherDtypesAndOffloadOnACpu) {
    AdamWOptions options;
    options.moments = DType::f16;
    EXPECT_THROW(Trained{options}, Error);
    AdamWOptions offloaded;
    offloaded.offload = true;
    EXPECT_THROW(Trained{offloaded}, UsageError);
}

TEST(GlobalNorm, OfBf16GradientsIsThatOfTheirValues) {
    const Buffer narrow(DType::bf16, {20'003}), wide(DType::f32, {20'003});
    for (int64_t i = 0; i < 20'003; ++i) {
        const Bf16 value = bf16_encode(std::sin(static_cast<float>(i)));
        narrow.tensor().as<Bf16>()[i] = value;
        wide.tensor().as<float>()[i] = bf16_decode(value);
    }
    Arena arena(1 << 16);
    Context context{arena};
    const std::vector<Tensor> a = {narrow.tensor()}, b = {wide.tensor()};
    EXPECT_EQ(global_norm(context, a).norm, global_norm(context, b).norm);
}

}  // namespace
}  // namespace nibble
