#include "nn/attention.h"

#include "nn/attention_reference.h"
#include "nn/compare.h"

namespace nibble {
namespace {

TEST(AttentionReference, BackwardIsTheGradientOfForward) {
    const AttentionShape shape{5, 4, 2, 3};
    constexpr int64_t kRows = 10;
    auto qkv = random_doubles(1, kRows * 8 * 3);
    const auto dout = random_doubles(2, kRows * 4 * 3);
    std::vector<double> out(dout.size()), logsumexp(kRows * 4), dqkv(qkv.size());
    const auto f = [&] {
        reference::attention_forward(shape, kRows, qkv.data(), out.data(), logsumexp.data());
        return weighted_sum(dout, out);
    };
    const auto numeric = finite_differences(qkv, f);
    f();
    reference::attention_backward(shape, kRows, dout.data(), qkv.data(), out.data(), logsumexp.data(),
                                  dqkv.data());
    expect_close(dqkv, numeric, 1e-6, 1e-8, "dqkv");
}

TEST(AttentionReference, LooksOnlyBackWithinItsSequence) {
    const AttentionShape shape{4, 1, 1, 2};
    auto qkv = random_doubles(1, 8 * 6);
    std::vector<double> out(8 * 2), changed(8 * 2), logsumexp(8);
    reference::attention_forward(shape, 8, qkv.data(), out.data(), logsumexp.data());
    for (int64_t i = 0; i < 6; ++i) qkv[5 * 6 + i] += 1;  // position 1 of the second sequence
    reference::attention_forward(shape, 8, qkv.data(), changed.data(), logsumexp.data());
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i] == changed[i], i < 10) << i;
}

struct Case {
    AttentionShape shape;
    int64_t sequences;
};
constexpr Case kCases[] = {
    {{1, 1, 1, 4}, 3},     // a single token
    {{7, 2, 1, 5}, 2},     // odd sizes
    {{40, 4, 2, 32}, 2},   // grouped queries
    {{130, 2, 2, 16}, 1},  // a block and a little
    {{256, 3, 1, 32}, 1},  // two blocks, three heads a group
    {{300, 1, 1, 64}, 1},
};

class Attention : public testing::TestWithParam<DType> {
  protected:
    // Scores of some size, so that the softmax is not flat.
    static Buffer random_qkv(DType dtype, const Case& c) {
        const int64_t width = (c.shape.heads + 2 * c.shape.kv_heads) * c.shape.head_dim;
        auto values = random_values(1, c.sequences * c.shape.sequence * width);
        for (float& v : values) v *= 1.5f;
        return buffer_of(dtype, {c.sequences * c.shape.sequence, width}, values);
    }

    template <typename Element>
    void check(const Case& c) {
        const DType dtype = GetParam();
        const int64_t rows = c.sequences * c.shape.sequence;
        const Buffer qkv = random_qkv(dtype, c);
        const Buffer dout = random_buffer(dtype, {rows, c.shape.heads * int64_t{c.shape.head_dim}}, 2);
        const Buffer out(dtype, dout.tensor().shape), logsumexp(DType::f32, {rows, c.shape.heads});
        const Buffer dqkv(dtype, qkv.tensor().shape);
        run_planned([&](Context& context) {
            attention_forward(context, c.shape, qkv.tensor(), out.tensor(), logsumexp.tensor());
            attention_backward(context, c.shape, dout.tensor(), qkv.tensor(), out.tensor(),
                               logsumexp.tensor(), dqkv.tensor());
        });
        // In double: BF16 activations are exact there.
        const auto x = values_of(qkv.tensor()), d = values_of(dout.tensor());
        std::vector<double> expected(d.size()), expected_lse(static_cast<size_t>(rows * c.shape.heads));
        std::vector<double> expected_dqkv(x.size());
        reference::attention_forward(c.shape, rows, x.data(), expected.data(), expected_lse.data());
        reference::attention_backward(c.shape, rows, d.data(), x.data(), expected.data(), expected_lse.data(),
                                      expected_dqkv.data());
        // BF16: probabilities and results are rounded to 8 bits.
        const double tolerance = dtype == DType::bf16 ? 1.0 / 100 : 4e-6;
        expect_close(values_of(logsumexp.tensor()), expected_lse, 1e-6, 4e-6, "logsumexp");
        expect_close(values_of(out.tensor()), expected, tolerance, tolerance * largest(expected) / 2, "out");
        expect_close(values_of(dqkv.tensor()), expected_dqkv, tolerance,
                     tolerance * largest(expected_dqkv) / 2, "dqkv");
    }
};

TEST_P(Attention, EqualsTheReference) {
    for (const Case& c : kCases) {
        SCOPED_TRACE(fmt::format("sequence {}, heads {} and {} of {}", c.shape.sequence, c.shape.heads,
                                 c.shape.kv_heads, c.shape.head_dim));
        GetParam() == DType::bf16 ? check<Bf16>(c) : check<float>(c);
    }
}

TEST_P(Attention, GivesTheSameBytesWithAnyNumberOfThreads) {
    const int before = thread_count();
    const Case c{{150, 4, 2, 16}, 2};
    const Buffer qkv = random_qkv(GetParam(), c), dout = random_buffer(GetParam(), {300, 64}, 2);
    std::vector<double> first_out, first_dqkv;
    for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Buffer out(GetParam(), {300, 64}), logsumexp(DType::f32, {300, 4}),
            dqkv(GetParam(), {300, 128});
        run_planned([&](Context& context) {
            attention_forward(context, c.shape, qkv.tensor(), out.tensor(), logsumexp.tensor());
            attention_backward(context, c.shape, dout.tensor(), qkv.tensor(), out.tensor(),
                               logsumexp.tensor(), dqkv.tensor());
        });
        if (threads == 1) {
            first_out = values_of(out.tensor());
            first_dqkv = values_of(dqkv.tensor());
        }
        EXPECT_EQ(values_of(out.tensor()), first_out);
        EXPECT_EQ(values_of(dqkv.tensor()), first_dqkv);
    }
    set_thread_count(before);
}

TEST_P(Attention, StaysFiniteForLargeScores) {
    const AttentionShape shape{8, 1, 1, 4};
    std::vector<float> values(8 * 12, 300.0f);
    const Buffer qkv = buffer_of(GetParam(), {8, 12}, values);
    const Buffer out(GetParam(), {8, 4}), logsumexp(DType::f32, {8, 1});
    run_planned([&](Context& context) {
        attention_forward(context, shape, qkv.tensor(), out.tensor(), logsumexp.tensor());
    });
    for (const double v : values_of(out.tensor())) EXPECT_NEAR(v, 300.0, 1.0);
}

TEST(AttentionShapes, ThatDoNotFitAreRefused) {
    Arena arena(1 << 20);
    Context context{arena};
    const Buffer qkv(DType::f32, {8, 24}), out(DType::f32, {8, 8}), logsumexp(DType::f32, {8, 2});
    EXPECT_THROW(attention_forward(context, {3, 2, 2, 4}, qkv.tensor(), out.tensor(), logsumexp.tensor()),
                 Error);
    EXPECT_THROW(attention_forward(context, {4, 2, 1, 4}, qkv.tensor(), out.tensor(), logsumexp.tensor()),
                 Error);
    EXPECT_THROW(attention_forward(context, {4, 3, 2, 4}, qkv.tensor(), out.tensor(), logsumexp.tensor()),
                 Error);
}

INSTANTIATE_TEST_SUITE_P(Activations, Attention, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace nibble
