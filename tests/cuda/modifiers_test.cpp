// What recipes have beside quantisers: the slope of DGE, smooth-swiglu, rounding towards a target, the
// history of tensor=delayed, and what modifiers do after an update.
#include "nn/amax_history.h"
#include "nn/dge.h"
#include "nn/smooth_swiglu.h"
#include "optim/optim.h"
#include "quant/round_towards.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class ModifiersOnGpu : public BothDevices {};
class SmoothSwigluOnGpu : public BothDevices {};

TEST_F(ModifiersOnGpu, DgeMultipliesByTheSlopeOfTheCpuToTheBit) {
    for (const Dge& dge : {Dge{}, Dge{.k = 3.7, .cap = 1.5}, Dge{.k = 1, .cap = 10}}) {
        for (const auto& [rows, cols, stride] :
             {std::array<int64_t, 3>{48, 1040, 1040}, {48, 1040, 1056}, {5, 33, 35}, {1, 3, 3}}) {
            std::vector<float> weights = random_values(1, rows * cols);
            for (size_t c = 0; c < 3; ++c) weights[c] = c == 0 ? 6.0f : 0.25f;  // the middle of an interval
            if (rows > 4) std::fill_n(weights.begin() + cols, cols, 0.0f);      // a row of zeros
            const Twin w(buffer_of(DType::f32, {rows, cols}, weights));
            const Twin gradient = Twin::random(DType::f32, {rows, stride}, 2);
            run([&](Context& context) {
                const Device on = context.device;
                multiply_by_dge_slope(context, dge, w.on(on), gradient.on(on));
            });
            gradient.expect_equal("gradient");
        }
    }
}

TEST_P(SmoothSwigluOnGpu, ScalesChannelsAsOnTheCpuToTheBit) {
    for (const SmoothSwiglu& options :
         {SmoothSwiglu{}, SmoothSwiglu{.scale = "exact"}, SmoothSwiglu{.strength = 0.5},
          SmoothSwiglu{.strength = 0.3, .scale = "exact"}, SmoothSwiglu{.strength = 0}}) {
        for (const Shape& shape : {Shape{301, 1536}, Shape{7, 33}, Shape{1, 3}}) {
            const int64_t cols = shape[1];
            std::vector<float> values = random_values(1, shape.count());
            for (size_t i = 0; i < values.size(); ++i) {
                const auto channel = static_cast<int64_t>(i) % cols;
                values[i] *= channel == 2        ? 0.0f
                             : channel % 7 == 0  ? 100.0f
                             : channel % 11 == 0 ? 1e-9f
                                                 : 1.0f;
            }
            const Twin h(buffer_of(GetParam(), shape, values)), scales = Twin::output(DType::f32, {cols});
            const Twin w = Twin::random(DType::f32, {65, cols}, 2),
                       divided = Twin::output(DType::f32, {65, cols});
            const Twin sum = Twin::random(DType::f32, {65, cols}, 3);
            run([&](Context& context) {
                const Device on = context.device;
                channel_scales(context, options, h.on(on), scales.on(on));
                if (context.planning()) return;
                multiply_columns(context, h.on(on), scales.on(on));
                divide_columns(context, w.on(on), scales.on(on), divided.on(on));
                divide_columns(context, w.on(on), scales.on(on), sum.on(on), true);
            });
            scales.expect_equal("scales");
            h.expect_equal("scaled channels");
            divided.expect_equal("divided weight");
            sum.expect_equal("sum of divided gradients");
        }
    }
}

TEST_F(ModifiersOnGpu, RoundingTowardsATargetGivesTheCodesOfTheCpu) {
    for (const char* text :
         {"nvfp4 1x16", "nvfp4 16x16", "nvfp4 1x16 scale=four-six:mse", "mxfp4 1x32 scale=rceil",
          "mxfp4 1x32 scale=three-quarters", "nvfp4 1x16 rotate=rht:64 signs=step out=bf16",
          "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"}) {
        const QuantSpec spec = parse_spec(text);
        for (const Shape& shape : {Shape{64, 512}, Shape{17, 77}}) {
            const Twin x = Twin::random(DType::f32, shape, 1), target = Twin::random(DType::f32, shape, 2);
            const int64_t padded = spec.padded(shape[1]);
            const Twin codes = Twin::zeros(DType::u8, {spec.padded_rows(shape[0]), padded / 2});
            const Twin values = Twin::output(DType::bf16, {spec.padded_rows(shape[0]), padded});
            const SignBits signs = rotation_signs(spec, {.seed = 5});
            run([&](Context& context) {
                const Device on = context.device;
                const ArenaScope scope(context.arena);
                QuantizedMatrix q = allocate_quantized(context.arena, spec, shape[0], shape[1], Keep::both);
                QuantizeOptions options;
                options.signs = &signs;
                quantize(context, spec, x.on(on), {}, q, options);
                round_towards(context, x.on(on), target.on(on), signs, q);
                if (context.planning()) return;
                copy(context, q.codes, codes.on(on));
                copy(context, q.operand, values.on(on));
            });
            codes.expect_equal(text);
            values.expect_equal(text);
        }
    }
}

TEST_F(ModifiersOnGpu, AHistoryIsRecordedAndBeginsItsSteps) {
    const Twin history = Twin::of<float>({2, 6}, {1, 2, 3, 4, 5, 6, 7, 0, 9, 0, 0, 12});
    const Twin amax = Twin::of<float>({2}, {8.0f, 8.0f});
    const auto state = [&](Device on) { return static_cast<AmaxHistory*>(history.on(on).data); };
    run([&](Context& context) {
        const float* const found = static_cast<const float*>(amax.on(context.device).data);
        for (const size_t place : {0, 1, 2})
            record_amax(context, found, &state(context.device)->current[place]);
    });
    EXPECT_EQ(state(Device::cpu)->current, (std::array<float, 6>{8, 8, 9, 0, 0, 12}));
    history.expect_equal("recorded");
    const auto begin = [&](Context& context) { begin_step(context, state(context.device)); };
    run(begin);
    EXPECT_EQ(*state(Device::cpu), (AmaxHistory{{8, 8, 9, 0, 0, 12}, {}}));
    history.expect_equal("begun");
    run(begin);  // nothing was recorded
    history.expect_equal("begun again");
}

// --- after an update ---

// Q(w) has the bits of the CPU's, and so has all that follows.
const char* const kSpecs[] = {"nvfp4 1x16", "nvfp4 16x16", "mxfp4 1x32 scale=quest:std rotate=hadamard:32",
                              "nvfp4 1x16 rotate=rht2:64 signs=step", "fp4 row"};

TEST_F(ModifiersOnGpu, CagePullsAsOnTheCpuToTheBit) {
    for (const char* text : kSpecs) {
        const QuantSpec spec = parse_spec(text);
        for (const Shape& shape : {Shape{64, 512}, Shape{17, 77}}) {
            const Twin w = Twin::random(DType::f32, shape, 1);
            run([&](Context& context) {
                cage_update(context, spec, {.seed = 3}, 0.01, w.on(context.device));
            });
            w.expect_equal(text);
        }
    }
}

TEST_F(ModifiersOnGpu, QemaAveragesAsOnTheCpuToTheBit) {
    const Twin first = Twin::random(DType::f32, {33, 77}, 1), second = Twin::random(DType::f32, {33, 77}, 2);
    const Twin average = Twin::output(DType::f32, {33, 77});
    run([&](Context& context) {
        const Device on = context.device;
        qema_update(context, 0.999, true, first.on(on), average.on(on));
        qema_update(context, 0.999, false, second.on(on), average.on(on));
    });
    average.expect_equal("average");
}

TEST_F(ModifiersOnGpu, OscillationsAreWatchedAndResetAsOnTheCpu) {
    for (const char* text : kSpecs) {
        const QuantSpec spec = parse_spec(text);
        const Shape shape = {33, 77};
        const Twin w = Twin::random(DType::f32, shape, 1), step = Twin::random(DType::f32, shape, 2);
        const Twin path = Twin::output(DType::f32, shape), quantized_path = Twin::output(DType::f32, shape),
                   previous = Twin::output(DType::f32, shape);
        int64_t resets[2] = {-1, -1};
        run([&](Context& context) {
            const Device on = context.device;
            const Oscillation seen = {path.on(on), quantized_path.on(on), previous.on(on)};
            oscireset_begin(context, w.on(on), seen);
            for (int update = 0; update < 3; ++update) {
                qema_update(context, 0.98, false, step.on(on), w.on(on));  // a small way
                oscireset_watch(context, spec, {}, w.on(on), seen);
            }
            resets[on == Device::cuda] = oscireset_reset(context, spec, {}, 2.0, w.on(on), seen);
        });
        path.expect_equal("way of the weight");
        quantized_path.expect_equal("way of the quantised weight");
        w.expect_equal("weight");
        EXPECT_EQ(resets[1], resets[0]) << text;
        EXPECT_GT(resets[0], 0) << text;
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, SmoothSwigluOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
