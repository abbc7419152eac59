#include "nn/quant_linear.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "support/linear_run.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Bytes;
using test::Keys;
using test::LinearInput;
using test::LinearOutput;
using test::Matrix;
using test::relative_error;

Matrix normal(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
    return Matrix(dtype, rows, cols, test::normals(rows * cols, seed));
}

LinearInput random_input(int64_t tokens, int64_t in, int64_t out, DType activations = DType::bf16) {
    return {normal(activations, tokens, in, 1), normal(DType::f32, out, in, 2),
            normal(activations, tokens, out, 3)};
}

// The exact products of what was given.
struct Exact {
    std::vector<double> y, dx, dw;
    explicit Exact(const LinearInput& input)
        : y(test::product(input.x, input.w)),
          dx(test::product(input.dy, test::transposed(input.w))),
          dw(test::product(test::transposed(input.dy), test::transposed(input.x))) {}
};

// A built-in recipe that lives as long as the program, as a layer needs it.
const Recipe& builtin(std::string_view name) {
    for (const Recipe& recipe : builtin_recipes()) {
        if (recipe.name == name) return recipe;
    }
    fail("no recipe {}", name);
}

Recipe with(Recipe recipe, std::string_view name, Source source, std::string_view spec) {
    operand(recipe, name) = {source, parse_spec(spec)};
    return recipe;
}

Recipe with_backward(Recipe recipe, Source w_and_x, std::string_view spec) {
    recipe = with(with(recipe, "dgrad.dy", Source::original, spec), "dgrad.w", w_and_x, spec);
    return with(with(recipe, "wgrad.dy", Source::original, spec), "wgrad.x", w_and_x, spec);
}

Recipe uniform(std::string_view spec) {
    Recipe recipe = with_backward(builtin("bf16"), Source::original, spec);
    return with(with(recipe, "fprop.x", Source::original, spec), "fprop.w", Source::original, spec);
}

LinearOutput run(const Recipe& recipe, const LinearInput& input, const Keys& keys = {}, int micro_batches = 1,
                 AmaxHistory* history = nullptr) {
    const QuantLinear layer(recipe, input.w.cols(), input.w.rows(), 7);
    return test::run_linear(layer, input, keys, micro_batches, history);
}

std::vector<Bytes> operands(const Recipe& recipe, const LinearInput& input, const Keys& keys = {},
                            int micro_batches = 1, AmaxHistory* history = nullptr) {
    QuantLinear layer(recipe, input.w.cols(), input.w.rows(), 7);
    std::vector<Bytes> all;
    test::collect_operands(layer, all);
    test::run_linear(layer, input, keys, micro_batches, history);
    return all;
}

std::vector<Bytes> only(const std::vector<Bytes>& all, std::string_view name) {
    std::vector<Bytes> some;
    std::copy_if(all.begin(), all.end(), std::back_inserter(some),
                 [&](const Bytes& b) { return b.operand == name; });
    return some;
}

bool same(const Bytes& a, const Bytes& b) {
    return a.codes == b.codes && a.scales == b.scales && a.fp32_scales == b.fp32_scales && a.mask == b.mask &&
           a.tensor_scale == b.tensor_scale;
}

std::vector<float> sum(const std::vector<float>& a, const std::vector<float>& b) {
    std::vector<float> c(a);
    for (size_t i = 0; i < c.size(); ++i) c[i] += b[i];
    return c;
}

// --- plain operands ---

TEST(QuantLinear, InBf16IsThreePlainProducts) {
    const LinearInput input = random_input(48, 40, 56);
    const LinearOutput out = run(builtin("bf16"), input);
    const Matrix w(DType::bf16, 56, 40, input.w.values());  // what the products read
    const Exact exact({input.x, w, input.dy});
    EXPECT_LT(relative_error(out.y, exact.y), 1e-6);
    EXPECT_LT(relative_error(out.dx, exact.dx), 1e-6);
    EXPECT_LT(relative_error(out.dw, exact.dw), 1e-6);
}

TEST(QuantLinear, InBf16RoundsF32Activations) {
    const LinearInput input = random_input(48, 40, 56, DType::f32);
    const LinearInput rounded = {Matrix(DType::bf16, 48, 40, input.x.values()), input.w,
                                 Matrix(DType::bf16, 48, 56, input.dy.values())};
    const LinearOutput a = run(builtin("bf16"), input), b = run(builtin("bf16"), rounded);
    EXPECT_LT(relative_error(a.y, b.y), 1e-6);
    EXPECT_LT(relative_error(a.dx, b.dx), 1e-6);
    EXPECT_LT(relative_error(a.dw, b.dw), 1e-6);
}

TEST(QuantLinear, InFp32RoundsNothing) {
    const LinearInput input = random_input(48, 40, 56, DType::f32);
    const LinearOutput out = run(uniform("fp32"), input);
    const Exact exact(input);
    EXPECT_LT(relative_error(out.y, exact.y), 1e-6);
    EXPECT_LT(relative_error(out.dx, exact.dx), 1e-6);
    EXPECT_LT(relative_error(out.dw, exact.dw), 1e-6);
}

TEST(QuantLinear, RoundsOnlyTheBf16OperandOfAMixedProduct) {
    const LinearInput input = random_input(48, 40, 56, DType::f32);
    const Matrix x(DType::bf16, 48, 40, input.x.values()), w(DType::bf16, 56, 40, input.w.values());
    const LinearOutput of_w = run(with(uniform("fp32"), "fprop.w", Source::original, "bf16"), input);
    EXPECT_LT(relative_error(of_w.y, test::product(input.x, w)), 1e-6);
    EXPECT_LT(relative_error(of_w.dx, Exact(input).dx), 1e-6);
    const LinearOutput of_x = run(with(uniform("fp32"), "fprop.x", Source::original, "bf16"), input);
    EXPECT_LT(relative_error(of_x.y, test::product(x, input.w)), 1e-6);
    EXPECT_LT(relative_error(of_x.dw, Exact(input).dw), 1e-6);
}

TEST(QuantLinear, AddsToTheWeightGradientAndOverwritesTheOther) {
    for (const char* name : {"bf16", "quartet", "nvidia"}) {
        const LinearInput input = random_input(64, 64, 64);
        const QuantLinear layer(builtin(name), 64, 64, 0);
        const LinearOutput once = test::run_linear(layer, input);
        Arena arena(1 << 22);
        Context context{arena};
        context.seed = 1;
        const std::vector<float> initial = test::normals(64 * 64, 9);
        const Matrix dw(DType::f32, 64, 64, initial), dx(DType::f32, 64, 64, initial), y(DType::f32, 64, 64);
        const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
        const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
        layer.backward(context, weight, saved, input.dy.tensor(), dx.tensor(), dw.tensor());
        EXPECT_LT(relative_error(dw.values(), sum(once.dw, initial)), 1e-6) << name;
        EXPECT_EQ(dx.values(), once.dx) << name;
    }
}

TEST(QuantLinear, LeavesOutTheInputGradientThatIsNotWanted) {
    const LinearInput input = random_input(64, 64, 64);
    const QuantLinear layer(builtin("quartet2"), 64, 64, 0);
    const Matrix dw(DType::f32, 64, 64), y(DType::f32, 64, 64);
    Arena arena(1 << 22);
    Context context{arena};
    context.seed = 1;
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
    layer.backward(context, weight, saved, input.dy.tensor(), {}, dw.tensor());
    EXPECT_EQ(dw.values(), test::run_linear(layer, input).dw);
}

// --- what the forward used ---

// Invariant 16 of the Quartet II notes: with a plain backward made from the forward, dX = E Wq and dW = E'
// Xq.
TEST(QuantLinear, I16_WithoutBackwardQuantisationHasTheGradientsOfTheForwardsProduct) {
    const LinearInput input = random_input(48, 80, 64);
    for (const char* spec : {"nvfp4 1x16 scale=four-six:mse", "nvfp4 16x16", "mxfp4 1x32 scale=rceil",
                             "nvfp4 1x16 outer=1x128", "mxfp8:e4m3", "fp8:e5m2 tensor", "fp8:e4m3 row",
                             "fp8:e4m3 1x128", "fp4 32x32", "int4 row", "log4 tensor"}) {
        Recipe recipe = with_backward(uniform(spec), Source::forward, "bf16");
        QuantLinear layer(recipe, 80, 64, 7);
        std::vector<std::vector<float>> used;  // x, w as the forward multiplied them
        layer.observe([&](Context& running, const QuantLinear::Observation& seen) {
            if (running.planning() || seen.quantized == nullptr) return;
            const QuantizedMatrix& q = *seen.quantized;
            std::vector<float> padded(static_cast<size_t>(q.rows * q.padded_cols)), values;
            Arena arena(64);
            Context context{arena};
            dequantize(context, q, view_of(padded, {q.rows, q.padded_cols}));
            for (int64_t r = 0; r < q.rows; ++r) {
                const auto row = padded.begin() + r * q.padded_cols;
                values.insert(values.end(), row, row + q.cols);
            }
            (seen.operand == "fprop.x" ? used.at(1) : used.emplace_back()) = values;
            if (seen.operand == "fprop.w") used.emplace_back();
        });
        const LinearOutput out = test::run_linear(layer, input);
        const Exact exact(
            {Matrix(DType::f32, 48, 80, used.at(1)), Matrix(DType::f32, 64, 80, used.at(0)), input.dy});
        EXPECT_LT(relative_error(out.y, exact.y), 1e-6) << spec;
        EXPECT_LT(relative_error(out.dx, exact.dx), 1e-6) << spec;
        EXPECT_LT(relative_error(out.dw, exact.dw), 1e-6) << spec;
    }
}

TEST(QuantLinear, TakesTheBf16ValueOfAForwardThatIsNotQuantised) {
    const LinearInput input = random_input(32, 48, 64, DType::f32);
    const LinearInput rounded = {
        Matrix(DType::bf16, 32, 48, input.x.values()),
        Matrix(DType::f32, 64, 48, Matrix(DType::bf16, 64, 48, input.w.values()).values()), input.dy};
    const auto backward = [](Source source, const char* spec) {
        return with_backward(builtin("bf16"), source, spec);
    };
    const LinearOutput plain = run(backward(Source::forward, "fp32"), input);
    const Exact exact(rounded);
    EXPECT_LT(relative_error(plain.dx, exact.dx), 1e-6);
    EXPECT_LT(relative_error(plain.dw, exact.dw), 1e-6);
    const std::vector<Bytes> of_forward = operands(backward(Source::forward, "nvfp4 1x16"), input);
    const std::vector<Bytes> of_rounded = operands(backward(Source::original, "nvfp4 1x16"), rounded);
    const std::vector<Bytes> of_original = operands(backward(Source::original, "nvfp4 1x16"), input);
    for (const char* name : {"dgrad.w", "wgrad.x"}) {
        EXPECT_TRUE(same(only(of_forward, name).at(0), only(of_rounded, name).at(0))) << name;
        EXPECT_FALSE(same(only(of_forward, name).at(0), only(of_original, name).at(0))) << name;
    }
}

// The backward's own factor of 4/3 and the forward's tensor scale multiply; neither replaces the other.
TEST(QuantLinear, KeepsTheForwardsTensorScaleUnderARuleThatHasOne) {
    const LinearInput input = random_input(64, 64, 64);
    const Recipe recipe =
        with_backward(uniform("nvfp4 1x16"), Source::forward, "mxfp4 1x32 scale=three-quarters");
    const LinearOutput out = run(recipe, input);
    const Exact exact(input);
    EXPECT_LT(relative_error(out.dx, exact.dx), 0.3);
    EXPECT_LT(relative_error(out.dw, exact.dw), 0.3);
}

TEST(QuantLinear, SameBitsOfSquareBlocksAreTheForwardsValues) {
    const LinearInput input = random_input(48, 80, 64);
    for (const char* spec :
         {"nvfp4 16x16", "mxfp4 32x32", "mxfp8:e5m2 32x32", "fp4 32x32", "fp8:e4m3 128x128"}) {
        Recipe bits = uniform(spec), values = bits;
        bits.dgrad_w.source = bits.wgrad_x.source = Source::same_bits;
        values = with(with(values, "dgrad.w", Source::forward, "bf16"), "wgrad.x", Source::forward, "bf16");
        const LinearOutput a = run(bits, input), b = run(values, input);
        EXPECT_EQ(a.dx, b.dx) << spec;
        EXPECT_EQ(a.dw, b.dw) << spec;
        // Quantising the transpose of a square-blocked matrix gives the same values again.
        const LinearOutput c = run(uniform(spec), input);
        EXPECT_LT(relative_error(a.dx, c.dx), 1e-6) << spec;
        EXPECT_LT(relative_error(a.dw, c.dw), 1e-6) << spec;
    }
}

// Scales of the forward's rows vary along the backward's sums; they are in the values that are quantised
// again.
TEST(QuantLinear, QuantisesTheForwardsValuesAgainWithTheirScales) {
    LinearInput input = random_input(64, 128, 128, DType::f32);
    for (int64_t r = 0; r < 64; ++r) {  // tokens of very different sizes
        for (int64_t k = 0; k < 128; ++k)
            input.x.tensor().as<float>()[r * 128 + k] *= std::exp2(float(r) / 4);
    }
    for (const char* forward : {"fp8:e4m3 row", "fp8:e4m3 1x128", "nvfp4 1x16 outer=1x128"}) {
        const Recipe recipe = with_backward(uniform(forward), Source::forward, "fp8:e4m3 1x128");
        const Exact exact(input);
        EXPECT_LT(relative_error(run(recipe, input).dw, exact.dw), 0.12) << forward;
        EXPECT_LT(relative_error(run(recipe, input).dx, exact.dx), 0.12) << forward;
    }
}

// --- results that are quantised ---

TEST(QuantLinear, QuantisesTheResultsThatTheRecipeNames) {
    const LinearInput input = random_input(48, 80, 72);
    Recipe recipe = uniform("mxfp4 32x32");
    const LinearOutput whole = run(recipe, input);
    recipe.fprop_y = parse_spec("fp4 32x32");
    recipe.dgrad_dx = parse_spec("nvfp4 1x16");
    const LinearOutput out = run(recipe, input);
    EXPECT_EQ(out.dw, whole.dw);
    const auto expect_quantized = [](const QuantSpec& spec, std::vector<float> before,
                                     const std::vector<float>& after, int64_t cols) {
        Arena arena(1 << 20);
        Context context{arena};
        const int64_t rows = static_cast<int64_t>(before.size()) / cols;
        QuantizedMatrix q = allocate_quantized(arena, spec, rows, cols);
        quantize(context, spec, view_of(before, {rows, cols}), {}, q);
        std::vector<float> values(static_cast<size_t>(rows * q.padded_cols));
        dequantize(context, q, view_of(values, {rows, q.padded_cols}));
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t k = 0; k < cols; ++k) {
                ASSERT_EQ(after.at(static_cast<size_t>(r * cols + k)),
                          values.at(static_cast<size_t>(r * q.padded_cols + k)));
            }
        }
    };
    expect_quantized(recipe.fprop_y, whole.y, out.y, 72);
    expect_quantized(recipe.dgrad_dx, whole.dx, out.dx, 80);
}

// A rotated forward without quantisation error would give the plain gradients: rotation and its inverse
// cancel. The rest of the error is that of the forward's quantiser.
TEST(QuantLinear, T12_TurnsGradientsBackFromTheForwardsSpace) {
    const LinearInput input = random_input(64, 96, 64);
    const Exact exact(input);
    for (const char* spec : {"nvfp4 1x16 rotate=hadamard:32", "nvfp4 1x16 rotate=rht:32 signs=step"}) {
        const LinearOutput out = run(with_backward(uniform(spec), Source::forward, "bf16"), input);
        EXPECT_LT(relative_error(out.dx, exact.dx), 0.12) << spec;
        EXPECT_LT(relative_error(out.dw, exact.dw), 0.12) << spec;
    }
}

TEST(QuantLinear, T12_MasksWhatTheForwardClipped) {
    const LinearInput input = random_input(32, 64, 32);
    Recipe recipe = with_backward(builtin("bf16"), Source::forward, "bf16");
    const char* clipping = "mxfp4 1x32 scale=quest:std mask=clip";  // not rotated: the mask is on dX itself
    recipe = with(with(recipe, "fprop.x", Source::original, clipping), "fprop.w", Source::original, clipping);
    Recipe unmasked = recipe;
    unmasked.fprop_x.spec.mask_clip = unmasked.fprop_w.spec.mask_clip = false;
    const std::vector<Bytes> all = operands(recipe, input);
    const LinearOutput masked = run(recipe, input), whole = run(unmasked, input);
    const auto expect_masked = [](const std::vector<float>& a, const std::vector<float>& b, const Bytes& by) {
        int64_t clipped = 0;
        for (size_t i = 0; i < a.size(); ++i) {
            const bool inside = (by.mask[i / 8] >> (i % 8) & 1) != 0;
            ASSERT_EQ(a[i], inside ? b[i] : 0.0f) << i;
            clipped += !inside;
        }
        EXPECT_GT(clipped, 0);
    };
    expect_masked(masked.dx, whole.dx, only(all, "fprop.x").at(0));
    expect_masked(masked.dw, whole.dw, only(all, "fprop.w").at(0));
}

// The last phase of FP4 All the Way keeps the forward and takes the gradients of a plain layer.
TEST(QuantLinear, L19_InThePhaseAfterFp4HasItsForwardAndPlainGradients) {
    const LinearInput input = random_input(64, 96, 64);
    const LinearOutput fp4 = run(builtin("fp4-all-the-way"), input), plain = run(builtin("bf16"), input);
    const LinearOutput after = run(builtin("fp4-all-the-way-qaf"), input);
    EXPECT_EQ(after.y, fp4.y);
    EXPECT_EQ(after.dx, plain.dx);
    EXPECT_EQ(after.dw, plain.dw);
}

// --- rotations ---

TEST(QuantLinear, T11_BothOperandsOfAProductShareTheirSigns) {
    // Quantisation noise alone is below 0.35; rotations that differ would give an error of about 1.4.
    const LinearInput input = random_input(128, 128, 128);
    const Exact exact(input);
    for (const Recipe& recipe : builtin_recipes()) {
        if (recipe.name.starts_with("quartet") && recipe.name != "quartet2")
            continue;  // biased by their masks
        for (uint32_t step = 0; step < 3; ++step) {
            const LinearOutput out = run(recipe, input, {5, step});
            EXPECT_LT(relative_error(out.y, exact.y), 0.35) << recipe.name;
            EXPECT_LT(relative_error(out.dx, exact.dx), 0.35) << recipe.name;
            if (recipe.wgrad_factor) continue;  // dW is not meant to be the exact one
            EXPECT_LT(relative_error(out.dw, exact.dw), 0.35) << recipe.name;
        }
    }
}

TEST(QuantLinear, L13_SignsThatDifferDoNotCancel) {
    // The error that the test above would see.
    const LinearInput input = random_input(64, 64, 64);
    const QuantSpec spec = parse_spec("nvfp4 1x16 rotate=rht:64 signs=step");
    const SignBits signs[] = {SignBits(0x123456789abcdefULL), SignBits(0xfedcba9876543210ULL)};
    const Matrix y(DType::f32, 64, 64), w(DType::f32, 64, 64, input.w.values());
    for (const bool shared : {true, false}) {
        Arena arena(1 << 20);
        Context context{arena};
        QuantizedMatrix a = allocate_quantized(arena, spec, 64, 64),
                        b = allocate_quantized(arena, spec, 64, 64);
        QuantizeOptions options;
        options.signs = &signs[0];
        quantize(context, spec, input.x.tensor(), {}, a, options);
        options.signs = &signs[shared ? 0 : 1];
        quantize(context, spec, w.tensor(), {}, b, options);
        matmul(context, a, b, y.tensor());
        const double error = relative_error(y.values(), Exact(input).y);
        EXPECT_EQ(error < 0.25, shared) << error;
        EXPECT_EQ(error > 1.0, !shared) << error;
    }
}

TEST(QuantLinear, DrawsSignsAsOftenAsTheRecipeSays) {
    const LinearInput input = random_input(64, 64, 64);
    LinearInput twice = random_input(128, 64, 64);  // the same 64 tokens twice
    for (int64_t i = 0; i < 64 * 64; ++i) {
        for (Matrix* m : {&twice.x, &twice.dy}) {
            Bf16* values = m->tensor().as<Bf16>();
            values[64 * 64 + i] = values[i];
        }
    }
    const auto compare = [&](const char* signs) {
        const std::string spec = fmt::format("nvfp4 1x16 rotate=rht:64 signs={}", signs);
        const Recipe recipe = with_backward(builtin("bf16"), Source::original, spec);
        const std::vector<Bytes> micro = only(operands(recipe, twice, {}, 2), "wgrad.dy");
        const Bytes next_step = only(operands(recipe, input, {1, 1}), "wgrad.dy").at(0);
        return std::array{same(micro.at(0), micro.at(1)), same(micro.at(0), next_step)};
    };
    EXPECT_EQ(compare("call"), (std::array{false, false}));
    EXPECT_EQ(compare("step"), (std::array{true, false}));
    EXPECT_EQ(compare("run"), (std::array{true, true}));
}

// --- steps and micro-steps ---

TEST(QuantLinear, QuantisesTheWeightOnceAStep) {
    const LinearInput input = random_input(64, 32, 48);
    const auto count = [&](const Recipe& recipe, std::string_view name) {
        return only(operands(recipe, input, {}, 4), name).size();
    };
    EXPECT_EQ(count(builtin("quartet2"), "fprop.w"), 1u);
    EXPECT_EQ(count(builtin("quartet2"), "dgrad.w"), 1u);
    EXPECT_EQ(count(builtin("quartet2"), "dgrad.dy"), 4u);
    const char* fresh = "nvfp4 1x16 scale=eden rotate=rht:128 signs=call";
    Recipe recipe = with(builtin("quartet2"), "dgrad.dy", Source::original, fresh);
    EXPECT_EQ(count(with(recipe, "dgrad.w", Source::forward, fresh), "dgrad.w"), 4u);
    EXPECT_EQ(count(builtin("nvidia"), "dgrad.w"), 0u);  // the forward's bytes
}

TEST(QuantLinear, DrawsOtherCoinsInEveryMicroStep) {
    LinearInput twice = random_input(128, 64, 64);  // the same 64 tokens twice
    for (int64_t i = 0; i < 64 * 64; ++i) {
        for (Matrix* m : {&twice.x, &twice.dy}) {
            Bf16* values = m->tensor().as<Bf16>();
            values[64 * 64 + i] = values[i];
        }
    }
    const std::vector<Bytes> all = operands(uniform("nvfp4 1x16 round=stochastic"), twice, {}, 2);
    for (const char* name : {"fprop.x", "dgrad.dy", "wgrad.dy", "wgrad.x"}) {
        const std::vector<Bytes> some = only(all, name);
        ASSERT_EQ(some.size(), 2u);
        EXPECT_NE(some[0].codes, some[1].codes) << name;
    }
}

// Blocks do not cross micro-batches and nothing depends on the whole tensor, so accumulation is the sum of
// one big batch, to the order of sums.
TEST(QuantLinear, AccumulatesMicroBatchesToOneBigBatch) {
    const LinearInput input = random_input(128, 64, 96);
    const auto step_signs = [](Recipe recipe) {
        recipe.wgrad_dy.spec.signs = recipe.wgrad_x.spec.signs = Signs::step;
        return recipe;
    };
    for (const Recipe& recipe :
         {builtin("bf16"), step_signs(builtin("quartet")), uniform("nvfp4 1x16 tensor=none")}) {
        const LinearOutput whole = run(recipe, input), parts = run(recipe, input, {}, 4);
        EXPECT_LT(relative_error(parts.y, whole.y), 1e-6) << recipe.name;
        EXPECT_LT(relative_error(parts.dx, whole.dx), 1e-6) << recipe.name;
        EXPECT_LT(relative_error(parts.dw, whole.dw), 1e-6) << recipe.name;
    }
}

TEST(QuantLinear, IsTheSameForTheSameKeysAlone) {
    const LinearInput input = random_input(64, 64, 64);
    for (const Recipe& recipe : builtin_recipes()) {
        const bool random = recipe.wgrad_dy.spec.is_stochastic() || recipe.wgrad_dy.spec.has_signs();
        const LinearOutput a = run(recipe, input, {3, 4}), b = run(recipe, input, {3, 4});
        const LinearOutput other_step = run(recipe, input, {3, 5}), other_seed = run(recipe, input, {4, 4});
        EXPECT_EQ(a.dx, b.dx) << recipe.name;
        EXPECT_EQ(a.dw, b.dw) << recipe.name;
        EXPECT_EQ(a.dw == other_step.dw, !random) << recipe.name;
        EXPECT_EQ(a.dw == other_seed.dw, !random) << recipe.name;
    }
}

TEST(QuantLinear, DrawsOtherCoinsForEveryLayerProductAndOperand) {
    // All six operands are the same 64 x 64 matrix (it is symmetric), so that only their keys differ.
    std::vector<float> values = test::normals(64 * 64);
    for (size_t r = 0; r < 64; ++r) {
        for (size_t c = 0; c < r; ++c) values[r * 64 + c] = values[c * 64 + r];
    }
    const LinearInput input = {Matrix(DType::f32, 64, 64, values), Matrix(DType::f32, 64, 64, values),
                               Matrix(DType::f32, 64, 64, values)};
    const Recipe recipe = uniform("nvfp4 1x16 round=stochastic");
    std::vector<Bytes> all;
    for (const int id : {0, 1, 256}) {
        QuantLinear layer(recipe, 64, 64, static_cast<uint16_t>(id));
        test::collect_operands(layer, all);
        test::run_linear(layer, input);
    }
    ASSERT_EQ(all.size(), 18u);
    for (size_t i = 0; i < all.size(); ++i) {
        for (size_t j = 0; j < i; ++j) {
            EXPECT_NE(all[i].codes, all[j].codes) << all[i].operand << " " << all[j].operand;
        }
    }
}

TEST(QuantLinear, RefusesMoreMicroStepsThanTheKeysHold) {
    const LinearInput input = random_input(32, 32, 32);
    const QuantLinear layer(builtin("quartet2"), 32, 32, 0);
    const Matrix y(DType::f32, 32, 32);
    Arena arena(1 << 20);
    Context context{arena};
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    context.micro_step = 256;
    EXPECT_THROW(layer.forward(context, weight, input.x.tensor(), y.tensor()), Error);
}

// --- tensor=delayed ---

const Recipe& delayed() {
    static const Recipe recipe = uniform("nvfp4 1x16 tensor=delayed");
    return recipe;
}

TEST(AmaxHistory, HoldsTheLargestAmaxOfTheStep) {
    const LinearInput input = random_input(64, 32, 48);
    AmaxHistory history;
    run(delayed(), input, {}, 4, &history);
    const auto amax = [](const Matrix& m) {
        float largest = 0;
        for (const float v : m.values()) largest = std::max(largest, std::abs(v));
        return largest;
    };
    const float x = amax(input.x), w = amax(input.w), dy = amax(input.dy);
    EXPECT_EQ(history.current, (std::array{x, w, dy, w, dy, x}));
    EXPECT_EQ(history.previous, (std::array<float, 6>{}));
}

TEST(AmaxHistory, ScalesTheNextStep) {
    LinearInput input = random_input(64, 32, 48);
    AmaxHistory history;
    const Bytes first = only(operands(delayed(), input, {}, 1, &history), "fprop.x").at(0);
    const Tensor w = input.w.tensor(), x = input.x.tensor();
    for (float& value : w.span<float>()) value *= 2;
    for (Bf16& value : x.span<Bf16>()) value = bf16_encode(2 * bf16_decode(value));
    const std::vector<Bytes> second = operands(delayed(), input, {}, 1, &history);
    EXPECT_EQ(only(second, "fprop.x").at(0).tensor_scale, first.tensor_scale);
    const std::vector<Bytes> third = operands(delayed(), input, {}, 1, &history);
    EXPECT_EQ(only(third, "fprop.x").at(0).tensor_scale, 2 * first.tensor_scale);
    EXPECT_EQ(only(third, "dgrad.w").at(0).tensor_scale, only(third, "fprop.w").at(0).tensor_scale);
}

TEST(AmaxHistory, IsLeftAloneByEvaluation) {
    const LinearInput input = random_input(64, 32, 48), other = random_input(32, 32, 48);
    const QuantLinear layer(delayed(), 32, 48, 7);
    AmaxHistory trained, evaluated;
    test::run_linear(layer, input, {}, 1, &trained);
    evaluated = trained;
    const Matrix y(DType::f32, 32, 48);
    Arena arena(1 << 20);
    Context context{arena};
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor(), &evaluated);
    layer.forward(context, weight, other.x.tensor(), y.tensor(), QuantLinear::Use::evaluate);
    test::run_linear(layer, input, {}, 1, &trained);
    test::run_linear(layer, input, {}, 1, &evaluated);
    EXPECT_EQ(trained, evaluated);
}

TEST(AmaxHistory, IsAskedFor) {
    const QuantLinear layer(delayed(), 32, 32, 0);
    EXPECT_TRUE(layer.needs_history());
    EXPECT_FALSE(QuantLinear(builtin("quartet2"), 32, 32, 0).needs_history());
    const LinearInput input = random_input(32, 32, 32);
    EXPECT_THROW(test::run_linear(layer, input), Error);
}

// --- any shape, any memory ---

// A layer with zero features and tokens added, up to what its quantisers pad to.
TEST(QuantLinear, PadsEveryDimensionWithZeros) {
    const int64_t tokens = 37, in = 50, out = 70;
    const LinearInput input = random_input(tokens, in, out);
    const auto padded = [](const Matrix& m, int64_t rows, int64_t cols) {
        Matrix large(m.tensor().dtype, rows, cols);
        for (int64_t r = 0; r < m.rows(); ++r) {
            for (int64_t c = 0; c < m.cols(); ++c) {
                if (m.tensor().dtype == DType::bf16) {
                    large.tensor().as<Bf16>()[r * cols + c] = bf16_encode(m.at(r, c));
                } else {
                    large.tensor().as<float>()[r * cols + c] = m.at(r, c);
                }
            }
        }
        return large;
    };
    const auto cut = [](const std::vector<float>& values, int64_t stride, int64_t rows, int64_t cols) {
        std::vector<float> some;
        for (int64_t r = 0; r < rows; ++r) {
            some.insert(some.end(), values.begin() + r * stride, values.begin() + r * stride + cols);
        }
        return some;
    };
    const auto padding = [](const OperandSpec& a) { return a.spec.is_quantized() ? a.spec.padding() : 1; };
    std::vector<Recipe> recipes = builtin_recipes();
    recipes.push_back(with_backward(uniform("nvfp4 16x16"), Source::forward, "bf16"));
    recipes.push_back(with(uniform("nvfp4 1x16"), "wgrad.x", Source::original, "bf16"));
    recipes.push_back(with(uniform("nvfp4 1x16"), "dgrad.w", Source::original, "bf16"));
    recipes.push_back(with(uniform("nvfp4 1x16"), "fprop.w", Source::original, "bf16"));
    for (const Recipe& recipe : recipes) {
        if (recipe.outliers) continue;  // zeros would be among the elements whose quantiles are taken
        const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
        const int64_t t = up(tokens, padding(recipe.wgrad_dy)), k = up(in, padding(recipe.fprop_x)),
                      n = up(out, padding(recipe.dgrad_dy));
        const LinearInput large = {padded(input.x, t, k), padded(input.w, n, k), padded(input.dy, t, n)};
        const LinearOutput a = run(recipe, input), b = run(recipe, large);
        EXPECT_LT(relative_error(a.y, cut(b.y, n, tokens, out)), 1e-6) << to_table(recipe);
        EXPECT_LT(relative_error(a.dx, cut(b.dx, k, tokens, in)), 1e-6) << to_table(recipe);
        EXPECT_LT(relative_error(a.dw, cut(b.dw, k, out, in)), 1e-6) << to_table(recipe);
    }
}

TEST(QuantLinear, PadsBothOperandsToWhatEitherNeeds) {
    const LinearInput input = random_input(80, 48, 48);  // multiples of 16, not of 32
    Recipe recipe = uniform("nvfp4 1x16");
    recipe = with(recipe, "fprop.w", Source::original, "mxfp4 1x32");
    recipe = with(recipe, "wgrad.dy", Source::original, "mxfp4 1x32");
    recipe = with(recipe, "dgrad.w", Source::original, "mxfp4 1x32");
    const LinearOutput out = run(recipe, input);
    const Exact exact(input);
    EXPECT_LT(relative_error(out.y, exact.y), 0.2);
    EXPECT_LT(relative_error(out.dx, exact.dx), 0.2);
    EXPECT_LT(relative_error(out.dw, exact.dw), 0.2);
}

// One step of a layer in an arena of `bytes`; 0: what a planning pass finds. Returns those.
size_t step_in(const QuantLinear& layer, const LinearInput& input, size_t bytes) {
    Arena fixed(bytes), planning;
    Context context{bytes > 0 ? fixed : planning};
    const Matrix y(DType::f32, input.x.rows(), layer.out()), dx(DType::f32, input.x.rows(), layer.in());
    const Matrix dw(DType::f32, layer.out(), layer.in());
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
    layer.backward(context, weight, saved, input.dy.tensor(), dx.tensor(), dw.tensor());
    return context.arena.peak();
}

TEST(QuantLinear, PlansExactlyTheMemoryThatItUses) {
    const LinearInput input = random_input(37, 50, 70);
    for (const Recipe& recipe : builtin_recipes()) {
        const QuantLinear layer(recipe, 50, 70, 0);
        const size_t planned = step_in(layer, input, 0);
        EXPECT_NO_THROW(step_in(layer, input, planned)) << recipe.name;
        EXPECT_THROW(step_in(layer, input, planned - 1), Error) << recipe.name;
    }
}

// An alpha of 1 must not take another way than the dry run, which does not know it, has planned for.
TEST(QuantLinear, PlansForATensorScaleOfOne) {
    Recipe recipe = builtin("tetrajet");
    recipe.wgrad_dy.spec = recipe.wgrad_x.spec = parse_spec("fp32");
    const LinearInput input = random_input(1024, 128, 128);
    EXPECT_LT(relative_error(run(recipe, input).dw, Exact(input).dw), 0.2);
}

TEST(QuantLinear, KeepsFourAndAHalfBitsOfItsInput) {
    const LinearInput input = random_input(256, 256, 128);
    const auto kept = [&](const char* name) {
        const QuantLinear layer(builtin(name), 256, 128, 0);
        const Matrix y(DType::f32, 256, 128);
        Arena arena;
        Context context{arena};
        const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
        const size_t before = arena.used();
        const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
        EXPECT_EQ(saved.x.shape.rank(), name == std::string("bf16") ? 2 : 0) << name;
        return static_cast<double>(arena.used() - before) * 8 / (256 * 256);
    };
    EXPECT_EQ(kept("bf16"), 0.0);
    EXPECT_NEAR(kept("quartet2"), 4.5, 0.02);
    EXPECT_NEAR(kept("nvidia"), 4.5, 0.02);
    EXPECT_NEAR(kept("quartet"), 5.25, 0.02);  // with the mask
    const QuantLinear layer(builtin("quartet2"), 256, 128, 0);
    Arena arena;
    Context context{arena};
    const Matrix y(DType::f32, 256, 128);
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    const size_t before = arena.used();
    layer.forward(context, weight, input.x.tensor(), y.tensor(), QuantLinear::Use::evaluate);
    EXPECT_EQ(arena.used(), before);
}

TEST(QuantLinear, RefusesTensorsOfOtherShapes) {
    const LinearInput input = random_input(32, 48, 64);
    const QuantLinear layer(builtin("bf16"), 48, 64, 0);
    const Matrix y(DType::f32, 32, 64), dx(DType::f32, 32, 48), dw(DType::f32, 64, 48),
        half(DType::bf16, 64, 48);
    Arena arena(1 << 20);
    Context context{arena};
    EXPECT_THROW(layer.prepare(context, half.tensor()), Error);
    EXPECT_THROW(layer.prepare(context, y.tensor()), Error);
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    EXPECT_THROW(layer.forward(context, weight, y.tensor(), input.x.tensor()), Error);
    const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
    EXPECT_THROW(layer.backward(context, weight, saved, input.x.tensor(), dx.tensor(), dw.tensor()), Error);
    EXPECT_THROW(layer.backward(context, weight, saved, input.dy.tensor(), y.tensor(), dw.tensor()), Error);
    EXPECT_THROW(layer.backward(context, weight, saved, input.dy.tensor(), dx.tensor(), half.tensor()),
                 Error);
}

TEST(QuantLinear, NamesTheOperandThatIsNotFinite) {
    LinearInput input = random_input(32, 32, 32);
    input.x.tensor().as<Bf16>()[40] = bf16_encode(INFINITY);
    try {
        run(builtin("quartet2"), input);
        FAIL() << "an infinity was quantised";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("fprop.x"), std::string::npos) << error.what();
    }
}

// --- every table that is valid can be executed ---

rc::Gen<std::string> any_spec() {
    return rc::gen::element<std::string>(
        "bf16", "fp32", "nvfp4 1x16", "nvfp4 16x16", "nvfp4 1x16 scale=four-six:mse", "mxfp4 1x32",
        "mxfp8:e4m3 1x32", "fp8:e5m2 tensor", "fp8:e4m3 row", "fp8:e4m3 1x128", "fp4 32x32", "int4 row",
        "log4 tensor", "mxfp4 32x32", "nvfp4 1x16 outer=1x128 rotate=rht:16 signs=run",
        "nvfp4 1x16 rotate=hadamard:32", "nvfp4 1x16 rotate=rht:16 signs=run",
        "mxfp4 1x32 rotate=rht:16 signs=run", "nvfp4 1x16 scale=eden rotate=rht:128 signs=step",
        "nvfp4 1x16 rotate=rht:128 signs=step round=stochastic",
        "mxfp4 1x32 scale=three-quarters rotate=hadamard:32",
        "mxfp4 1x32 scale=three-quarters rotate=rht:128 signs=step");
}

RC_GTEST_PROP(QuantLinearProperty, ExecutesEveryValidTable, ()) {
    Recipe recipe = builtin("bf16");
    for (const std::string_view name : kOperandNames) operand(recipe, name).spec = parse_spec(*any_spec());
    // Most random tables are refused for their rotations: give both operands of a product the same spec at
    // times.
    if (*rc::gen::arbitrary<bool>()) recipe.fprop_w.spec = recipe.fprop_x.spec;
    if (*rc::gen::arbitrary<bool>()) recipe.dgrad_w.spec = recipe.dgrad_dy.spec;
    if (*rc::gen::arbitrary<bool>()) recipe.wgrad_x.spec = recipe.wgrad_dy.spec;
    for (OperandSpec* o : {&recipe.dgrad_w, &recipe.wgrad_x}) {
        o->source = *rc::gen::element(Source::original, Source::forward, Source::same_bits);
        if (o->source == Source::same_bits)
            o->spec = (o == &recipe.dgrad_w ? recipe.fprop_w : recipe.fprop_x).spec;
    }
    try {
        validate(recipe);
    } catch (const UsageError&) {
        RC_DISCARD("not valid");
    }
    const int64_t tokens = *rc::gen::inRange(1, 100), in = *rc::gen::inRange(1, 100),
                  out = *rc::gen::inRange(1, 100);
    const LinearInput input = random_input(tokens, in, out);
    const LinearOutput result = run(recipe, input);
    // Each of at most four quantisations on the way adds a relative squared error of 0.03 at most on average;
    // a product of few terms varies more. A rotation or a transposition that is wrong gives 1.4.
    const Exact exact(input);
    RC_ASSERT(relative_error(result.y, exact.y) < 0.7);
    RC_ASSERT(relative_error(result.dx, exact.dx) < 0.7);
    RC_ASSERT(relative_error(result.dw, exact.dw) < 0.7);
}

}  // namespace
}  // namespace nibble
