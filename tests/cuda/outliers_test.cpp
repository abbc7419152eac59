#include "nn/outliers.h"

#include "support/both_devices.h"

namespace nibble {
namespace {

class OutliersOnGpu : public BothDevices {
  protected:
    static void expect_the_quantiles_of_the_cpu(const Twin& x, double q);
};

void OutliersOnGpu::expect_the_quantiles_of_the_cpu(const Twin& x, double q) {
    const Twin range = Twin::output(DType::f32, {2});
    run([&](Context& context) {
        quantile_range(context, x.on(context.device), q, range.on(context.device));
    });
    range.expect_equal(fmt::format("quantile {} of {}", q, x.cpu.tensor().shape.str()));
}

TEST_P(OutliersOnGpu, QuantilesAreThoseOfTheCpu) {
    for (const Shape& shape : {Shape{1, 1}, Shape{1, 3}, Shape{7, 33}, Shape{64, 512}, Shape{701, 999}}) {
        const Twin x = Twin::random(GetParam(), shape, 1);
        for (const double q : {0.999, 0.99, 0.97, 0.75, 0.501}) expect_the_quantiles_of_the_cpu(x, q);
    }
}

TEST_P(OutliersOnGpu, QuantilesHaveAnySignAnySizeAndManyEquals) {
    const int64_t count = 20'011;
    for (const float offset : {-9.0f, 9.0f, 0.0f}) {
        std::vector<float> values = random_values(2, count);
        for (float& v : values) v = 1e-20f * (v + offset);
        const Twin x(buffer_of(GetParam(), {count}, values));
        for (const double q : {0.999, 0.6}) expect_the_quantiles_of_the_cpu(x, q);
    }
    std::vector<float> few(static_cast<size_t>(count));
    for (size_t i = 0; i < few.size(); ++i) few[i] = i % 5 == 0 ? 0.0f : i % 5 == 1 ? -0.0f : 2.5f;
    few[17] = std::numeric_limits<float>::infinity();
    few[18] = -std::numeric_limits<float>::infinity();
    for (const double q : {0.99, 0.61, 0.79})
        expect_the_quantiles_of_the_cpu(Twin(buffer_of(GetParam(), {count}, few)), q);
}

TEST_P(OutliersOnGpu, AreCutOffToTheBit) {
    for (const Shape& shape : {Shape{64, 512}, Shape{7, 33}, Shape{1, 3}}) {
        const Twin x = Twin::random(GetParam(), shape, 1), out = Twin::output(GetParam(), shape);
        const Twin range = Twin::of<float>({2}, {-0.7f, 0.9f});
        run([&](Context& context) {
            const Device on = context.device;
            clamp(context, x.on(on), range.on(on), out.on(on));
        });
        out.expect_equal("clamped");
    }
}

// Terms are added in the order of the CPU's, one rounding each.
TEST_P(OutliersOnGpu, AreMultipliedToTheBit) {
    for (const Shape& shape : {Shape{70, 512}, Shape{9, 33}, Shape{3, 300}}) {
        for (const int64_t cols : {int64_t{1024 + 64}, int64_t{53}}) {
            for (const DType of_weight : {DType::f32, DType::bf16}) {
                for (const DType of_result : {DType::f32, DType::bf16}) {
                    for (const float high : {1.6f, 0.1f}) {
                        const Twin x = Twin::random(GetParam(), shape, 1),
                                   w = Twin::random(of_weight, {shape[1], cols}, 2);
                        const Twin product = Twin::random(DType::f32, {shape[0], cols}, 3);
                        const Twin y = Twin::output(of_result, {shape[0], cols});
                        const Twin range = Twin::of<float>({2}, {-1.5f, high});
                        run([&](Context& context) {
                            const Device on = context.device;
                            add_outlier_product(context, x.on(on), range.on(on), w.on(on), product.on(on),
                                                y.on(on));
                        });
                        y.expect_equal("product with outliers");
                    }
                }
            }
        }
    }
}

TEST_P(OutliersOnGpu, AreAddedToTheProductInPlace) {
    const Twin x = Twin::random(GetParam(), {40, 96}, 1), w = Twin::random(DType::bf16, {96, 80}, 2);
    const Twin product = Twin::random(DType::f32, {40, 80}, 3), range = Twin::of<float>({2}, {-1.0f, 1.0f});
    run([&](Context& context) {
        const Device on = context.device;
        add_outlier_product(context, x.on(on), range.on(on), w.on(on), product.on(on), product.on(on));
    });
    product.expect_equal("product with outliers");
}

INSTANTIATE_TEST_SUITE_P(Activations, OutliersOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
