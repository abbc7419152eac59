#include "nn/rmsnorm.h"

#include "support/both_devices.h"

namespace nibble {
namespace {

class RmsnormOnGpu : public BothDevices {};

// Rows of one piece a thread, of several, of more than registers hold, and of odd sizes.
const Shape kShapes[] = {{70, 64},   {33, 1536}, {100, 512}, {5, 4096}, {9, 8200},
                         {2, 20480}, {37, 35},   {3, 1537},  {1, 8}};

TEST_P(RmsnormOnGpu, ForwardAddsTheResidualAndNormalises) {
    const double tolerance = rounding_of(GetParam());
    for (const Shape& shape : kShapes) {
        for (const bool has_delta : {true, false}) {
            const Twin x = Twin::random(GetParam(), shape, 1), delta = Twin::random(GetParam(), shape, 2);
            const Twin weight = Twin::random(DType::f32, {shape[1]}, 3), amax = Twin::output(DType::f32, {1});
            const Twin sum = Twin::output(GetParam(), shape), y = Twin::output(GetParam(), shape);
            const Twin rstd = Twin::output(DType::f32, {shape[0]});
            run([&](Context& context) {
                const Device on = context.device;
                rmsnorm_forward(context, x.on(on), has_delta ? delta.on(on) : Tensor{}, weight.on(on), 1e-5f,
                                sum.on(on), y.on(on), rstd.on(on), amax.on(on).as<float>());
            });
            if (has_delta) sum.expect_equal("sum");
            rstd.expect_close(2e-6, 0, "rstd");
            y.expect_close(tolerance, 1e-6, "y");
            amax.expect_close(tolerance, 0, "amax");
        }
    }
}

TEST_P(RmsnormOnGpu, ASumIsMadeInPlace) {
    const Shape shape = {20, 96};
    const Twin x = Twin::random(GetParam(), shape, 1), delta = Twin::random(GetParam(), shape, 2);
    const Twin weight = Twin::random(DType::f32, {96}, 3), y = Twin::output(GetParam(), shape);
    const Twin rstd = Twin::output(DType::f32, {20});
    run([&](Context& context) {
        const Device on = context.device;
        rmsnorm_forward(context, x.on(on), delta.on(on), weight.on(on), 1e-5f, x.on(on), y.on(on),
                        rstd.on(on));
    });
    x.expect_equal("sum");
    y.expect_close(rounding_of(GetParam()), 1e-6, "y");
}

TEST_P(RmsnormOnGpu, BackwardMakesBothGradients) {
    for (const Shape& shape : kShapes) {
        for (const bool has_past : {true, false}) {
            const Twin x = Twin::random(GetParam(), shape, 1), dy = Twin::random(GetParam(), shape, 2);
            const Twin weight = Twin::random(DType::f32, {shape[1]}, 3);
            // In place over the gradient that comes past the norm, as the model has it.
            const Twin past = Twin::random(GetParam(), shape, 4), other = Twin::output(GetParam(), shape);
            const Twin& dx = has_past ? past : other;
            const Twin dweight = Twin::random(DType::f32, {shape[1]}, 5);
            std::vector<float> statistics;
            for (const float v : random_values(6, shape[0])) statistics.push_back(0.5f + std::fabs(v));
            const Twin rstd = Twin::of<float>({shape[0]}, statistics);
            run([&](Context& context) {
                const Device on = context.device;
                rmsnorm_backward(context, dy.on(on), x.on(on), weight.on(on), rstd.on(on),
                                 has_past ? past.on(on) : Tensor{}, dx.on(on), dweight.on(on));
            });
            dx.expect_close(rounding_of(GetParam()), 2e-5, "dx");
            dweight.expect_close(2e-5, 2e-5, "dweight");
        }
    }
}

TEST_P(RmsnormOnGpu, GradientsOfManyRowsAreTheSameInEveryRun) {
    const Shape shape = {3000, 160};
    const Twin x = Twin::random(GetParam(), shape, 1), dy = Twin::random(GetParam(), shape, 2);
    const Twin weight = Twin::random(DType::f32, {160}, 3), rstd = Twin::random(DType::f32, {3000}, 4);
    const Twin dx = Twin::output(GetParam(), shape);
    std::vector<double> first;
    for (int i = 0; i < 2; ++i) {
        const Twin dweight = Twin::zeros(DType::f32, {160});
        run_on(Device::cuda, [&](Context& context) {
            rmsnorm_backward(context, dy.gpu.tensor(), x.gpu.tensor(), weight.gpu.tensor(), rstd.gpu.tensor(),
                             {}, dx.gpu.tensor(), dweight.gpu.tensor());
        });
        const Buffer got = dweight.received();
        if (i == 0) first = values_of(got.tensor());
        EXPECT_EQ(values_of(got.tensor()), first);
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, RmsnormOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
