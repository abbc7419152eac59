#include "nn/rope.h"

#include "nn/compare.h"
#include "nn/rope_reference.h"

namespace nibble {
namespace {

TEST(RopeTable, HoldsTheAnglesOfThePaper) {
    const Buffer cos(DType::f32, {50, 4}), sin(DType::f32, {50, 4});
    rope_table(10000.0, cos.tensor(), sin.tensor());
    for (const int64_t position : {0, 1, 49}) {
        for (int64_t i = 0; i < 4; ++i) {
            const double angle =
                static_cast<double>(position) * std::pow(10000.0, -2.0 * static_cast<double>(i) / 8);
            EXPECT_FLOAT_EQ(cos.tensor().as<float>()[position * 4 + i], static_cast<float>(std::cos(angle)));
            EXPECT_FLOAT_EQ(sin.tensor().as<float>()[position * 4 + i], static_cast<float>(std::sin(angle)));
        }
    }
}

TEST(RopeReference, InverseIsTheGradientOfForward) {
    constexpr int kHeads = 2, kHeadDim = 6;
    std::vector<double> cos, sin;
    for (int i = 0; i < kHeadDim / 2; ++i) {
        cos.push_back(std::cos(0.3 + i));
        sin.push_back(std::sin(0.3 + i));
    }
    for (const RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
        auto x = random_doubles(1, kHeads * kHeadDim);
        const auto dy = random_doubles(2, kHeads * kHeadDim);
        const auto numeric = finite_differences(x, [&] {
            auto y = x;
            reference::rope_row(layout, kHeads, kHeadDim, cos.data(), sin.data(), 1, y.data());
            return weighted_sum(dy, y);
        });
        auto dx = dy;
        reference::rope_row(layout, kHeads, kHeadDim, cos.data(), sin.data(), -1, dx.data());
        expect_close(dx, numeric, 1e-7, 1e-8, "dx");
    }
}

struct Case {
    DType dtype;
    RopeLayout layout;
};

class Rope : public testing::TestWithParam<Case> {
  protected:
    template <typename Element>
    void check(int heads, int kv_heads, int64_t head_dim) {
        constexpr int64_t kSequence = 5, kRows = 10;
        const auto [dtype, layout] = GetParam();
        const int64_t width = (heads + 2 * kv_heads) * head_dim;
        const Buffer cos(DType::f32, {8, head_dim / 2}), sin(DType::f32, {8, head_dim / 2});
        rope_table(100.0, cos.tensor(), sin.tensor());
        const Buffer qkv = random_buffer(dtype, {kRows, width}, 1);
        for (const int direction : {1, -1}) {
            auto expected = elements_of<Element>(qkv.tensor());
            for (int64_t t = 0; t < kRows; ++t) {
                const int64_t at = t % kSequence * head_dim / 2;
                reference::rope_row(layout, heads + kv_heads, static_cast<int>(head_dim),
                                    cos.tensor().as<float>() + at, sin.tensor().as<float>() + at, direction,
                                    expected.data() + t * width);
            }
            Arena arena(0);
            Context context{arena};
            if (direction == 1)
                rope_forward(context, layout, qkv.tensor(), kSequence, heads, kv_heads, cos.tensor(),
                             sin.tensor());
            else
                rope_backward(context, layout, qkv.tensor(), kSequence, heads, kv_heads, cos.tensor(),
                              sin.tensor());
            expect_close(values_of(qkv.tensor()), to_doubles(expected), rounding_of(dtype), 1e-6, "rotated");
        }
    }
};

TEST_P(Rope, EqualsTheReferenceInBothDirections) {
    for (const int64_t head_dim : {2, 6, 32, 34, 128}) {
        GetParam().dtype == DType::bf16 ? check<Bf16>(4, 2, head_dim) : check<float>(4, 2, head_dim);
    }
}

INSTANTIATE_TEST_SUITE_P(
    All, Rope,
    testing::Values(Case{DType::f32, RopeLayout::interleaved}, Case{DType::f32, RopeLayout::half_split},
                    Case{DType::bf16, RopeLayout::interleaved}, Case{DType::bf16, RopeLayout::half_split}),
    [](const auto& test) {
        return std::string(name_of(test.param.dtype)) +
               (test.param.layout == RopeLayout::interleaved ? "Interleaved" : "HalfSplit");
    });

}  // namespace
}  // namespace nibble
