#include "nn/swiglu.h"

#include "nn/compare.h"
#include "nn/swiglu_reference.h"

namespace nibble {
namespace {

TEST(SwigluReference, BackwardIsTheGradientOfForward) {
    constexpr int64_t kRows = 3, kCols = 5;
    auto gate_up = random_doubles(1, kRows * 2 * kCols);
    const auto dh = random_doubles(2, kRows * kCols);
    std::vector<double> h(dh.size()), dgate_up(gate_up.size());
    const auto numeric = finite_differences(gate_up, [&] {
        reference::swiglu_forward<double>(kRows, kCols, gate_up.data(), h.data());
        return weighted_sum(dh, h);
    });
    reference::swiglu_backward<double>(kRows, kCols, dh.data(), gate_up.data(), dgate_up.data());
    expect_close(dgate_up, numeric, 1e-7, 1e-8, "dgate_up");
}

class Swiglu : public testing::TestWithParam<DType> {
  protected:
    template <typename Element>
    void check(int64_t rows, int64_t cols) {
        const DType dtype = GetParam();
        const Buffer gate_up = random_buffer(dtype, {rows, 2 * cols}, 1),
                     dh = random_buffer(dtype, {rows, cols}, 2);
        // Gates whose sigmoid is 0 or 1 in FP32, or nearly.
        const float extremes[] = {-200.0f, -90.0f, -20.0f, 0.0f, 20.0f, 90.0f, 200.0f};
        for (size_t i = 0; i < std::size(extremes) && static_cast<int64_t>(i) < cols; ++i) {
            gate_up.tensor().as<Element>()[i] = store_as<Element>(extremes[i]);
        }
        const Buffer h(dtype, {rows, cols}), dgate_up(dtype, {rows, 2 * cols});
        float amax = -1, d_amax = -1;
        run_planned([&](Context& context) {
            swiglu_forward(context, gate_up.tensor(), h.tensor(), &amax);
            swiglu_backward(context, dh.tensor(), gate_up.tensor(), dgate_up.tensor(), &d_amax);
        });
        std::vector<Element> expected_h(static_cast<size_t>(rows * cols)), expected(2 * expected_h.size());
        reference::swiglu_forward<float>(rows, cols, gate_up.tensor().as<Element>(), expected_h.data());
        reference::swiglu_backward<float>(rows, cols, dh.tensor().as<Element>(),
                                          gate_up.tensor().as<Element>(), expected.data());
        expect_close(values_of(h.tensor()), to_doubles(expected_h), rounding_of(dtype), 1e-30, "h");
        expect_close(values_of(dgate_up.tensor()), to_doubles(expected), rounding_of(dtype), 1e-6,
                     "dgate_up");
        EXPECT_EQ(amax, largest(values_of(h.tensor())));
        EXPECT_EQ(d_amax, largest(values_of(dgate_up.tensor())));

        run_planned([&](Context& context) {
            swiglu_backward(context, dh.tensor(), gate_up.tensor(), gate_up.tensor());
        });
        EXPECT_EQ(values_of(gate_up.tensor()), values_of(dgate_up.tensor())) << "in place";
    }
};

TEST_P(Swiglu, EqualsTheReference) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {17, 7}, {40, 33}, {33, 384}}) {
        GetParam() == DType::bf16 ? check<Bf16>(rows, cols) : check<float>(rows, cols);
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, Swiglu, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace nibble
