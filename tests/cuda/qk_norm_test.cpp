#include "nn/qk_norm.h"

#include "support/both_devices.h"

namespace nibble {
namespace {

class QkNormOnGpu : public BothDevices {};

constexpr int64_t kTokens = 70;

// Heads of every size that the lanes of a warp are grouped for, and one that no access of 16 bytes fits.
constexpr AttentionShape kShapes[] = {{35, 3, 1, 64},  {35, 6, 2, 128}, {35, 2, 2, 96},
                                      {35, 1, 1, 256}, {35, 2, 1, 16},  {35, 3, 1, 22}};

TEST_P(QkNormOnGpu, ForwardNormalisesInPlaceAndKeepsTheHeads) {
    for (const AttentionShape& shape : kShapes) {
        for (const bool keeps : {true, false}) {
            const int64_t normed = shape.heads + shape.kv_heads, size = shape.head_dim;
            const Twin qkv = Twin::random(GetParam(), {kTokens, (normed + shape.kv_heads) * size}, 1);
            const Twin q = Twin::random(DType::f32, {size}, 2), k = Twin::random(DType::f32, {size}, 3);
            const Twin x = Twin::output(GetParam(), {kTokens, normed * size});
            const Twin rstd = Twin::output(DType::f32, {kTokens, normed});
            run([&](Context& context) {
                const Device on = context.device;
                qk_norm_forward(context, shape, qkv.on(on), q.on(on), k.on(on), 1e-5f,
                                keeps ? x.on(on) : Tensor{}, keeps ? rstd.on(on) : Tensor{});
            });
            qkv.expect_close(rounding_of(GetParam()), 1e-6, "qkv");
            if (!keeps) continue;
            x.expect_equal("x");
            rstd.expect_close(2e-6, 0, "rstd");
        }
    }
}

TEST_P(QkNormOnGpu, BackwardMakesTheGradientsOfHeadsAndWeights) {
    for (const AttentionShape& shape : kShapes) {
        const int64_t normed = shape.heads + shape.kv_heads, size = shape.head_dim;
        const Twin d = Twin::random(GetParam(), {kTokens, (normed + shape.kv_heads) * size}, 1);
        const Twin q = Twin::random(DType::f32, {size}, 2), k = Twin::random(DType::f32, {size}, 3);
        const Twin x = Twin::random(GetParam(), {kTokens, normed * size}, 4);
        const Twin rstd = Twin::random(DType::f32, {kTokens, normed}, 5);
        const Twin dq = Twin::random(DType::f32, {size}, 6), dk = Twin::random(DType::f32, {size}, 7);
        run([&](Context& context) {
            const Device on = context.device;
            qk_norm_backward(context, shape, d.on(on), q.on(on), k.on(on), x.on(on), rstd.on(on), dq.on(on),
                             dk.on(on));
        });
        d.expect_close(rounding_of(GetParam()), 1e-5, "dqkv");
        dq.expect_close(2e-5, 2e-5, "dq_weight");
        dk.expect_close(2e-5, 2e-5, "dk_weight");
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, QkNormOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
