#include "optim/adamw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "numerics/philox.h"

namespace nibble {
namespace {

std::vector<float> random_values(size_t count, uint64_t seed, float size = 1.0f) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) {
        const uint32_t word = philox_draw(seed, Purpose::sampling, i).word[0];
        values[i] = size * (static_cast<float>(word) * 0x1p-31f - 1.0f);
    }
    return values;
}

// One tensor and its optimizer.
struct Trained {
    explicit Trained(std::vector<float> start, const AdamWOptions& options, bool decay = true)
        : master(std::move(start)), gradient(master.size()) {
        const Shape shape{static_cast<int64_t>(master.size())};
        optimizer = std::make_unique<AdamW>(
            std::vector<OptimizedTensor>{{"w", view_of(master, shape), view_of(gradient, shape), decay}},
            options);
    }
    // Copied: the optimizer holds a view of `gradient`.
    void set_gradient(const std::vector<float>& values) {
        std::copy(values.begin(), values.end(), gradient.begin());
    }
    void update(int64_t t, double lr, double factor = 1.0) {
        Arena arena(0);
        Context context{arena};
        optimizer->update(context, t, lr, factor);
    }
    std::vector<float> master, gradient;
    std::unique_ptr<AdamW> optimizer;
};

TEST(AdamW, FirstUpdateMovesByTheLearningRateWhateverTheGradientsSize) {
    // Bias correction makes m / (1 - beta1) = g and v / (1 - beta2) = g², so the step is lr * sign(g).
    Trained trained({1.0f, 1.0f, 1.0f}, {.weight_decay = 0});
    trained.set_gradient({3.0f, -1e-3f, 1e4f});
    trained.update(1, 0.125);
    EXPECT_NEAR(trained.master[0], 0.875f, 1e-6);
    EXPECT_NEAR(trained.master[1], 1.125f, 2e-6);
    EXPECT_NEAR(trained.master[2], 0.875f, 1e-6);
}

TEST(AdamW, ConstantGradientKeepsTheCorrectedMomentsConstant) {
    Trained trained({0.0f}, {.weight_decay = 0});
    for (int t = 1; t <= 50; ++t) {
        trained.set_gradient({-0.5f});
        trained.update(t, 0.01);
        EXPECT_NEAR(trained.master[0], 0.01f * static_cast<float>(t), 1e-5f);
    }
}

TEST(AdamW, DecayIsDecoupledFromTheGradient) {
    Trained trained({2.0f}, {.weight_decay = 0.1});
    trained.set_gradient({0.0f});
    trained.update(1, 0.5);
    EXPECT_FLOAT_EQ(trained.master[0], 2.0f * (1 - 0.5f * 0.1f));
}

TEST(AdamW, TensorsThatDoNotDecayKeepTheirSize) {
    Trained trained({2.0f}, {.weight_decay = 0.1}, /*decay=*/false);
    trained.set_gradient({0.0f});
    trained.update(1, 0.5);
    EXPECT_EQ(trained.master[0], 2.0f);
}

TEST(AdamW, GradientFactorActsAsIfTheGradientWereScaled) {
    const AdamWOptions options;
    Trained scaled({1.0f, -2.0f}, options), plain({1.0f, -2.0f}, options);
    scaled.set_gradient({3.0f, 0.5f});
    plain.set_gradient({0.75f, 0.125f});
    scaled.update(1, 0.1, 0.25);
    plain.update(1, 0.1);
    EXPECT_EQ(scaled.master, plain.master);
    EXPECT_EQ(scaled.optimizer->state()[0].v.as<float>()[0], plain.optimizer->state()[0].v.as<float>()[0]);
}

TEST(AdamW, FollowsAnIndependentImplementationInDouble) {
    constexpr size_t kCount = 1000;
    constexpr int kUpdates = 30;
    const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.3};
    Trained trained(random_values(kCount, 1), options);
    std::vector<double> w(trained.master.begin(), trained.master.end()), m(kCount), v(kCount);
    double beta1_power = 1, beta2_power = 1;
    for (int t = 1; t <= kUpdates; ++t) {
        const double lr = 0.01 / t;
        trained.set_gradient(random_values(kCount, 100 + static_cast<uint64_t>(t), 0.1f));
        trained.update(t, lr);
        beta1_power *= options.beta1;
        beta2_power *= options.beta2;
        for (size_t i = 0; i < kCount; ++i) {
            const double g = trained.gradient[i];
            w[i] -= lr * options.weight_decay * w[i];
            m[i] += (1 - options.beta1) * (g - m[i]);
            v[i] += (1 - options.beta2) * (g * g - v[i]);
            w[i] -= lr * (m[i] / (1 - beta1_power)) / (std::sqrt(v[i] / (1 - beta2_power)) + options.epsilon);
        }
    }
    for (size_t i = 0; i < kCount; ++i) EXPECT_NEAR(trained.master[i], w[i], 1e-6) << "element " << i;
}

TEST(AdamW, VectorCodeEqualsTheReferenceToTheBit) {
    constexpr size_t kCount = 20011;  // more than one chunk, and a tail that no vector width divides
    const AdamWOptions options;
    Trained trained(random_values(kCount, 3), options);
    std::vector<float> w = trained.master, m(kCount), v(kCount);
    for (int t = 1; t <= 3; ++t) {
        trained.set_gradient(random_values(kCount, 50 + static_cast<uint64_t>(t), 1e-3f));
        trained.update(t, 0.003, 0.7);
        AdamWFactors f;
        f.gradient = 0.7f;
        f.beta1 = static_cast<float>(options.beta1);
        f.rest1 = static_cast<float>(1 - options.beta1);
        f.beta2 = static_cast<float>(options.beta2);
        f.rest2 = static_cast<float>(1 - options.beta2);
        f.correction1 = static_cast<float>(1 / (1 - std::pow(options.beta1, t)));
        f.correction2 = static_cast<float>(1 / (1 - std::pow(options.beta2, t)));
        f.lr = 0.003f;
        f.epsilon = static_cast<float>(options.epsilon);
        f.keep = static_cast<float>(1 - 0.003 * options.weight_decay);
        for (size_t i = 0; i < kCount; ++i) adamw_reference(f, trained.gradient[i], w[i], m[i], v[i]);
    }
    EXPECT_EQ(trained.master, w);
    const auto& state = trained.optimizer->state()[0];
    EXPECT_EQ(std::vector<float>(state.m.as<float>(), state.m.as<float>() + kCount), m);
    EXPECT_EQ(std::vector<float>(state.v.as<float>(), state.v.as<float>() + kCount), v);
}

TEST(AdamW, RefusesWhatItCannotDo) {
    EXPECT_THROW(Trained({1.0f}, {.beta1 = 1.0}), UsageError);
    EXPECT_THROW(Trained({1.0f}, {.beta2 = -0.1}), UsageError);
    EXPECT_THROW(Trained({1.0f}, {.epsilon = 0}), UsageError);
    EXPECT_THROW(Trained({1.0f}, {.weight_decay = -1}), UsageError);
    std::vector<float> master(2), gradient(3);
    EXPECT_THROW(AdamW({{"w", view_of(master, {2}), view_of(gradient, {3}), true}}, {}), Error);
}

}  // namespace
}  // namespace nibble
