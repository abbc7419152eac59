// The layers that treat each element, or pair, by itself: RoPE, SwiGLU, biases.
#include "nn/bias.h"
#include "nn/rope.h"
#include "nn/rope_reference.h"
#include "nn/swiglu.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class ElementwiseOnGpu : public BothDevices {};

TEST_P(ElementwiseOnGpu, RopeTurnsAsTheReferenceToTheBit) {
    for (const int half : {64, 8, 20, 3}) {
        for (const auto layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
            for (const int direction : {1, -1}) {
                const int heads = 5, kv_heads = 2;
                const int64_t width = (heads + 2 * kv_heads) * 2 * half, rows = 14, sequence = 7;
                const Twin cos = Twin::random(DType::f32, {9, half}, 1),
                           sin = Twin::random(DType::f32, {9, half}, 2);
                const Twin qkv = Twin::random(GetParam(), {rows, width}, 3);
                with_elements(qkv.cpu.tensor(), [&](auto* values) {
                    for (int64_t t = 0; t < rows; ++t) {
                        const int64_t at = t % sequence * half;
                        reference::rope_row(layout, heads + kv_heads, 2 * half,
                                            cos.cpu.tensor().as<float>() + at,
                                            sin.cpu.tensor().as<float>() + at, direction, values + t * width);
                    }
                });
                run_on(Device::cuda, [&](Context& context) {
                    const auto turn = [&](auto&& rope) {
                        rope(context, layout, qkv.gpu.tensor(), sequence, heads, kv_heads, cos.gpu.tensor(),
                             sin.gpu.tensor());
                    };
                    direction == 1 ? turn([](auto&&... x) { rope_forward(x...); })
                                   : turn([](auto&&... x) { rope_backward(x...); });
                });
                qkv.expect_equal("qkv");
            }
        }
    }
}

const Shape kShapes[] = {{40, 1024}, {3, 8960}, {7, 24}, {5, 33}, {1, 1}};

TEST_P(ElementwiseOnGpu, SwigluForward) {
    for (const Shape& shape : kShapes) {
        const Twin gate_up = Twin::random(GetParam(), {shape[0], 2 * shape[1]}, 1);
        const Twin h = Twin::output(GetParam(), shape), amax = Twin::output(DType::f32, {1});
        run([&](Context& context) {
            const Device on = context.device;
            swiglu_forward(context, gate_up.on(on), h.on(on), amax.on(on).as<float>());
        });
        h.expect_close(rounding_of(GetParam()), 1e-7, "h");
        amax.expect_close(rounding_of(GetParam()), 0, "amax");
    }
}

TEST_P(ElementwiseOnGpu, SwigluBackwardInPlace) {
    for (const Shape& shape : kShapes) {
        const Twin gate_up = Twin::random(GetParam(), {shape[0], 2 * shape[1]}, 1);
        const Twin dh = Twin::random(GetParam(), shape, 2), amax = Twin::output(DType::f32, {1});
        run([&](Context& context) {
            const Device on = context.device;
            swiglu_backward(context, dh.on(on), gate_up.on(on), gate_up.on(on), amax.on(on).as<float>());
        });
        gate_up.expect_close(rounding_of(GetParam()), 2e-6, "dgate_up");
        const Buffer got = amax.received(), of = gate_up.received();
        EXPECT_EQ(values_of(got.tensor())[0], largest(values_of(of.tensor())));
    }
}

TEST_P(ElementwiseOnGpu, GatesThatAreLargeSaturate) {
    const Twin gate_up = Twin(buffer_of(GetParam(), {2, 4}, {100, 5e5f, 1, 1, -100, -5e5f, 1, 1}));
    const Twin h = Twin::output(GetParam(), {2, 2});
    run([&](Context& context) { swiglu_forward(context, gate_up.on(context.device), h.on(context.device)); });
    h.expect_close(1e-6, 1e-30, "h");
}

TEST_P(ElementwiseOnGpu, RopeAddsABiasFirstToTheBit) {
    for (const int half : {64, 3}) {
        for (const auto layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
            const int heads = 5, kv_heads = 2;
            const int64_t width = (heads + 2 * kv_heads) * 2 * half;
            const Twin cos = Twin::random(DType::f32, {9, half}, 1),
                       sin = Twin::random(DType::f32, {9, half}, 2),
                       bias = Twin::random(DType::f32, {width}, 4),
                       qkv = Twin::random(GetParam(), {14, width}, 3),
                       apart = Twin::random(GetParam(), {14, width}, 3);
            run_on(Device::cuda, [&](Context& context) {
                if (context.planning()) return;
                rope_forward(context, layout, qkv.gpu.tensor(), 7, heads, kv_heads, cos.gpu.tensor(),
                             sin.gpu.tensor(), bias.gpu.tensor());
                add_bias(context, apart.gpu.tensor(), bias.gpu.tensor());
                rope_forward(context, layout, apart.gpu.tensor(), 7, heads, kv_heads, cos.gpu.tensor(),
                             sin.gpu.tensor());
            });
            const Buffer got = qkv.received(), expected = apart.received();
            EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.bytes()), 0) << half;
        }
    }
}

TEST_P(ElementwiseOnGpu, ABiasIsAddedToTheBit) {
    for (const Shape& shape : {Shape{130, 2048}, Shape{65, 56}, Shape{3, 33}}) {
        const Twin y = Twin::random(GetParam(), shape, 1), bias = Twin::random(DType::f32, {shape[1]}, 2);
        run([&](Context& context) { add_bias(context, y.on(context.device), bias.on(context.device)); });
        y.expect_equal("y");
    }
}

TEST_P(ElementwiseOnGpu, TheGradientOfABiasIsTheSumOfTheRows) {
    for (const Shape& shape : {Shape{3000, 40}, Shape{65, 2048}, Shape{3, 33}}) {
        const Twin dy = Twin::random(GetParam(), shape, 1), dbias = Twin::random(DType::f32, {shape[1]}, 2);
        run([&](Context& context) {
            bias_backward(context, dy.on(context.device), dbias.on(context.device));
        });
        dbias.expect_close(2e-7, 1e-7, "dbias");
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, ElementwiseOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
