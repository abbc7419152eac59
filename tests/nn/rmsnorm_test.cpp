#include "nn/rmsnorm.h"

#include "nn/compare.h"
#include "nn/rmsnorm_reference.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 3, kCols = 5;
constexpr double kEps = 0.01;

TEST(RmsnormReference, BackwardIsTheGradientOfForward) {
    auto x = random_doubles(1, kRows * kCols), weight = random_doubles(2, kCols);
    const auto delta = random_doubles(3, kRows * kCols);
    const auto wy = random_doubles(4, kRows * kCols), wsum = random_doubles(5, kRows * kCols);
    std::vector<double> sum(x.size()), y(x.size()), rstd(kRows);
    // What reaches later layers: y through the norm, and sum past it.
    const auto f = [&] {
        reference::rmsnorm_forward(kRows, kCols, x.data(), delta.data(), weight.data(), kEps, sum.data(),
                                   y.data(), rstd.data());
        return weighted_sum(wy, y) + weighted_sum(wsum, sum);
    };
    const auto dx_numeric = finite_differences(x, f), dw_numeric = finite_differences(weight, f);
    f();
    std::vector<double> dx(x.size()), dw(weight.size());
    reference::rmsnorm_backward(kRows, kCols, wy.data(), sum.data(), weight.data(), rstd.data(), wsum.data(),
                                dx.data(), dw.data());
    expect_close(dx, dx_numeric, 1e-7, 1e-8, "dx");
    expect_close(dw, dw_numeric, 1e-7, 1e-8, "dweight");
}

class Rmsnorm : public testing::TestWithParam<DType> {
  protected:
    template <typename Element>
    void check_forward(int64_t rows, int64_t cols, bool has_delta);
    template <typename Element>
    void check_backward(int64_t rows, int64_t cols, bool has_past);
};

constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1}, {5, 7}, {70, 33}, {130, 128}};

template <typename Element>
void Rmsnorm::check_forward(int64_t rows, int64_t cols, bool has_delta) {
    const DType dtype = GetParam();
    const Buffer x = random_buffer(dtype, {rows, cols}, 1), delta = random_buffer(dtype, {rows, cols}, 2);
    const Buffer weight = random_buffer(DType::f32, {cols}, 3);
    const Buffer sum(dtype, {rows, cols}), y(dtype, {rows, cols}), rstd(DType::f32, {rows});
    float amax = -1;
    run_planned([&](Context& context) {
        rmsnorm_forward(context, x.tensor(), has_delta ? delta.tensor() : Tensor{}, weight.tensor(), 1e-5f,
                        sum.tensor(), y.tensor(), rstd.tensor(), &amax);
    });
    std::vector<Element> expected_sum(static_cast<size_t>(rows * cols)), expected_y(expected_sum.size());
    std::vector<float> expected_rstd(static_cast<size_t>(rows));
    reference::rmsnorm_forward(
        rows, cols, x.tensor().as<Element>(), has_delta ? delta.tensor().as<Element>() : nullptr,
        weight.tensor().as<float>(), 1e-5f, expected_sum.data(), expected_y.data(), expected_rstd.data());
    if (has_delta) {
        EXPECT_EQ(values_of(sum.tensor()), to_doubles(expected_sum));
    }
    expect_close(values_of(rstd.tensor()), to_doubles(expected_rstd), 2e-6, 0, "rstd");
    expect_close(values_of(y.tensor()), to_doubles(expected_y), rounding_of(dtype), 1e-30, "y");
    EXPECT_EQ(amax, largest(values_of(y.tensor())));
}

template <typename Element>
void Rmsnorm::check_backward(int64_t rows, int64_t cols, bool has_past) {
    const DType dtype = GetParam();
    const Buffer x = random_buffer(dtype, {rows, cols}, 1), dy = random_buffer(dtype, {rows, cols}, 2);
    const Buffer weight = random_buffer(DType::f32, {cols}, 3), past = random_buffer(dtype, {rows, cols}, 4);
    const Buffer before = random_buffer(DType::f32, {cols}, 5), rstd = random_buffer(DType::f32, {rows}, 6);
    const Buffer dx(dtype, {rows, cols}), dweight(DType::f32, {cols});
    run_planned([&](Context& context) {
        std::copy_n(before.tensor().as<float>(), cols, dweight.tensor().as<float>());
        rmsnorm_backward(context, dy.tensor(), x.tensor(), weight.tensor(), rstd.tensor(),
                         has_past ? past.tensor() : Tensor{}, dx.tensor(), dweight.tensor());
    });
    std::vector<Element> expected_dx(static_cast<size_t>(rows * cols));
    auto expected_dweight = elements_of<float>(before.tensor());
    reference::rmsnorm_backward(rows, cols, dy.tensor().as<Element>(), x.tensor().as<Element>(),
                                weight.tensor().as<float>(), rstd.tensor().as<float>(),
                                has_past ? past.tensor().as<Element>() : nullptr, expected_dx.data(),
                                expected_dweight.data());
    expect_close(values_of(dx.tensor()), to_doubles(expected_dx), rounding_of(dtype), 2e-5, "dx");
    expect_close(values_of(dweight.tensor()), to_doubles(expected_dweight), 1e-5, 1e-4, "dweight");
}

TEST_P(Rmsnorm, ForwardEqualsTheReference) {
    for (const auto& [rows, cols] : kShapes) {
        for (const bool has_delta : {false, true}) {
            GetParam() == DType::bf16 ? check_forward<Bf16>(rows, cols, has_delta)
                                      : check_forward<float>(rows, cols, has_delta);
        }
    }
}

TEST_P(Rmsnorm, BackwardEqualsTheReference) {
    for (const auto& [rows, cols] : kShapes) {
        for (const bool has_past : {false, true}) {
            GetParam() == DType::bf16 ? check_backward<Bf16>(rows, cols, has_past)
                                      : check_backward<float>(rows, cols, has_past);
        }
    }
}

TEST_P(Rmsnorm, WorksInPlace) {
    const Shape shape{9, 40};
    const Buffer x = random_buffer(GetParam(), shape, 1), delta = random_buffer(GetParam(), shape, 2);
    const Buffer in_place = random_buffer(GetParam(), shape, 1);
    const Buffer weight = random_buffer(DType::f32, {40}, 3);
    const Buffer sum(GetParam(), shape), y(GetParam(), shape), rstd(DType::f32, {9}), y2(GetParam(), shape);
    Arena arena(1 << 16);
    Context context{arena};
    rmsnorm_forward(context, x.tensor(), delta.tensor(), weight.tensor(), 1e-5f, sum.tensor(), y.tensor(),
                    rstd.tensor());
    rmsnorm_forward(context, in_place.tensor(), delta.tensor(), weight.tensor(), 1e-5f, in_place.tensor(),
                    y2.tensor(), rstd.tensor());
    EXPECT_EQ(values_of(in_place.tensor()), values_of(sum.tensor()));
    EXPECT_EQ(values_of(y2.tensor()), values_of(y.tensor()));

    const Buffer dx(GetParam(), shape), dweight(DType::f32, {40});
    rmsnorm_backward(context, y.tensor(), sum.tensor(), weight.tensor(), rstd.tensor(), delta.tensor(),
                     dx.tensor(), dweight.tensor());
    rmsnorm_backward(context, y.tensor(), sum.tensor(), weight.tensor(), rstd.tensor(), delta.tensor(),
                     delta.tensor(), dweight.tensor());
    EXPECT_EQ(values_of(delta.tensor()), values_of(dx.tensor()));
}

INSTANTIATE_TEST_SUITE_P(Activations, Rmsnorm, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST(RmsnormGradient, OfTheWeightIsTheSameWithAnyNumberOfThreads) {
    const int before = thread_count();
    const Shape shape{300, 24};
    const Buffer x = random_buffer(DType::f32, shape, 1), dy = random_buffer(DType::f32, shape, 2);
    const Buffer weight = random_buffer(DType::f32, {24}, 3), rstd = random_buffer(DType::f32, {300}, 4);
    std::vector<double> first;
    for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Buffer dx(DType::f32, shape), dweight(DType::f32, {24});
        run_planned([&](Context& context) {
            rmsnorm_backward(context, dy.tensor(), x.tensor(), weight.tensor(), rstd.tensor(), {},
                             dx.tensor(), dweight.tensor());
        });
        if (threads == 1) first = values_of(dweight.tensor());
        EXPECT_EQ(values_of(dweight.tensor()), first);
    }
    set_thread_count(before);
}

}  // namespace
}  // namespace nibble
