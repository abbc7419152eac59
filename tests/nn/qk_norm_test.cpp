#include "nn/qk_norm.h"

#include "nn/bias.h"
#include "nn/compare.h"
#include "nn/qk_norm_reference.h"

namespace nibble {
namespace {

TEST(QkNormReference, BackwardIsTheGradientOfAHead) {
    constexpr int64_t kSize = 6;
    auto h = random_doubles(1, kSize);
    const auto out_weights = random_doubles(2, kSize);
    const std::vector<float> weight = random_values(3, kSize);
    std::vector<double> y(kSize);
    const auto f = [&] {
        reference::head_norm(kSize, h.data(), weight.data(), 1e-3, y.data());
        return weighted_sum(out_weights, y);
    };
    const auto numeric = finite_differences(h, f);
    const double rstd = reference::head_norm(kSize, h.data(), weight.data(), 1e-3, y.data());
    std::vector<double> d = out_weights, dweight(kSize);
    reference::head_norm_backward(kSize, h.data(), weight.data(), rstd, d.data(), dweight.data());
    expect_close(d, numeric, 1e-7, 1e-8, "dh");
    for (int64_t i = 0; i < kSize; ++i) EXPECT_NEAR(dweight[i], out_weights[i] * h[i] * rstd, 1e-12);
}

constexpr AttentionShape kShape = {5, 3, 1, 8};  // sequence, heads, kv_heads, head_dim
constexpr int64_t kTokens = 70, kWidth = (3 + 2 * 1) * 8;

class QkNormOf : public testing::TestWithParam<DType> {};

TEST_P(QkNormOf, NormalisesQueriesAndKeysAndLeavesValues) {
    const Buffer qkv = random_buffer(GetParam(), {kTokens, kWidth}, 1);
    const auto before = values_of(qkv.tensor());
    const Buffer q = random_buffer(DType::f32, {8}, 2), k = random_buffer(DType::f32, {8}, 3);
    run_planned([&](Context& context) {
        qk_norm_forward(context, kShape, qkv.tensor(), q.tensor(), k.tensor(), 1e-5f, {}, {});
    });
    const auto after = values_of(qkv.tensor());
    std::vector<double> expected = before;
    for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t h = 0; h < 4; ++h) {
            double* const head = &expected[static_cast<size_t>(t * kWidth + h * 8)];
            reference::head_norm(8, head, (h < 3 ? q : k).tensor().as<float>(), 1e-5, head);
        }
    }
    const double tolerance = rounding_of(GetParam());
    expect_close(after, expected, tolerance, 1e-6, "qkv");
}

TEST_P(QkNormOf, BackwardEqualsTheReferenceWithAnyNumberOfThreads) {
    const Buffer x = random_buffer(GetParam(), {kTokens, 4 * 8}, 1);
    const Buffer q = random_buffer(DType::f32, {8}, 2), k = random_buffer(DType::f32, {8}, 3);
    const Buffer rstd(DType::f32, {kTokens, 4});
    const auto values = values_of(x.tensor());
    for (int64_t i = 0; i < kTokens * 4; ++i) {
        std::vector<double> y(8);
        rstd.tensor().as<float>()[i] = static_cast<float>(reference::head_norm(
            8, &values[static_cast<size_t>(i * 8)], q.tensor().as<float>(), 1e-5, y.data()));
    }
    const int before = thread_count();
    std::vector<double> first_d, first_q;
    for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Buffer d = random_buffer(GetParam(), {kTokens, kWidth}, 4);
        const Buffer dq(DType::f32, {8}), dk(DType::f32, {8});
        auto expected = values_of(d.tensor());
        run_planned([&](Context& context) {
            qk_norm_backward(context, kShape, d.tensor(), q.tensor(), k.tensor(), x.tensor(), rstd.tensor(),
                             dq.tensor(), dk.tensor());
        });
        std::vector<double> dweights[2] = {std::vector<double>(8), std::vector<double>(8)};
        for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t h = 0; h < 4; ++h)
                reference::head_norm_backward(
                    8, &values[static_cast<size_t>((t * 4 + h) * 8)], (h < 3 ? q : k).tensor().as<float>(),
                    double{rstd.tensor().as<float>()[t * 4 + h]},
                    &expected[static_cast<size_t>(t * kWidth + h * 8)], dweights[h < 3 ? 0 : 1].data());
        }
        const double tolerance = rounding_of(GetParam());
        expect_close(values_of(d.tensor()), expected, tolerance, 1e-5, "dqkv");
        expect_close(values_of(dq.tensor()), dweights[0], 1e-4, 1e-4, "dq_weight");
        expect_close(values_of(dk.tensor()), dweights[1], 1e-4, 1e-4, "dk_weight");
        if (threads == 1) first_d = values_of(d.tensor()), first_q = values_of(dq.tensor());
        EXPECT_EQ(values_of(d.tensor()), first_d);
        EXPECT_EQ(values_of(dq.tensor()), first_q);
    }
    set_thread_count(before);
}

TEST_P(QkNormOf, ABiasIsAddedToEveryRowAndItsGradientIsTheSumOfRows) {
    const Buffer y = random_buffer(GetParam(), {kTokens, 100}, 1), bias = random_buffer(DType::f32, {100}, 2);
    const Buffer dbias = random_buffer(DType::f32, {100}, 3);
    auto expected = values_of(y.tensor()), gradient = values_of(dbias.tensor());
    for (int64_t i = 0; i < kTokens * 100; ++i) {
        gradient[static_cast<size_t>(i % 100)] += expected[static_cast<size_t>(i)];
        expected[static_cast<size_t>(i)] += double{bias.tensor().as<float>()[i % 100]};
    }
    run_planned([&](Context& context) { bias_backward(context, y.tensor(), dbias.tensor()); });
    expect_close(values_of(dbias.tensor()), gradient, 1e-6, 1e-5, "dbias");
    run_planned([&](Context& context) { add_bias(context, y.tensor(), bias.tensor()); });
    expect_close(values_of(y.tensor()), expected, rounding_of(GetParam()), 1e-6, "y");
}

INSTANTIATE_TEST_SUITE_P(Activations, QkNormOf, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace nibble
