// Linear layers on a GPU against those of the CPU: their operands have the same bytes, so that only the order
// of FP32 sums differs.
#include "nn/quant_linear.h"

#include "support/linear_run.h"
#include "support/on_gpu.h"
#include "support/samples.h"

namespace nibble {
namespace {

using LinearLayers = OnGpu;

test::LinearInput random_input(int64_t tokens, int64_t in, int64_t out) {
    const auto normal = [](DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
        return test::Matrix(dtype, rows, cols, test::normals(rows * cols, seed));
    };
    return {normal(DType::bf16, tokens, in, 1), normal(DType::f32, out, in, 2),
            normal(DType::bf16, tokens, out, 3)};
}

void expect_same(const test::LinearOutput& found, const test::LinearOutput& expected,
                 const std::string& what) {
    EXPECT_LT(test::relative_error(found.y, expected.y), 2e-6) << what << ", y";
    EXPECT_LT(test::relative_error(found.dx, expected.dx), 2e-6) << what << ", dx";
    EXPECT_LT(test::relative_error(found.dw, expected.dw), 2e-6) << what << ", dw";
}

void expect_as_on_the_cpu(const Recipe& recipe, int64_t tokens, int64_t in, int64_t out) {
    const test::LinearInput input = random_input(tokens, in, out);
    const QuantLinear layer(recipe, in, out, 7);
    const auto run = [&](Device device) { return test::run_linear(layer, input, {}, 2, nullptr, device); };
    expect_same(run(Device::cuda), run(Device::cpu), recipe.name);
}

Recipe uniform(std::string_view spec) {
    Recipe recipe = find_recipe("bf16");
    for (const std::string_view name : kOperandNames) operand(recipe, name).spec = parse_spec(spec);
    return recipe;
}

TEST_F(LinearLayers, AreTheCpusInEveryRecipe) {
    for (const Recipe& recipe : builtin_recipes()) {
        expect_as_on_the_cpu(recipe, 256, 256, 128);
        expect_as_on_the_cpu(recipe, 90, 77, 53);
    }
}

// Tiles of the forward, with FP32 scales, read along their other dimension, where nothing is rotated.
TEST_F(LinearLayers, ReadRotatedTilesOfTheForwardAsOnTheCpu) {
    for (const char* tiles : {"fp4 32x32", "fp4 32x32 rotate=hadamard:128", "fp8:e4m3 128x128"}) {
        for (const char* gradient : {"nvfp4 1x16", "fp4 32x32", "nvfp4 1x16 outer=1x128"}) {
            Recipe recipe = uniform(gradient);
            recipe.name = fmt::format("{}-and-{}", tiles, gradient);
            std::ranges::replace(recipe.name, ' ', '-');
            for (const char* name : {"fprop.x", "fprop.w", "dgrad.w", "wgrad.x"})
                operand(recipe, name).spec = parse_spec(tiles);
            for (const char* name : {"dgrad.w", "wgrad.x"}) operand(recipe, name).source = Source::same_bits;
            expect_as_on_the_cpu(recipe, 90, 77, 53);
            expect_as_on_the_cpu(recipe, 40, 256, 320);
        }
    }
}

TEST_F(LinearLayers, ScaleByTheStepBeforeAsOnTheCpu) {
    const Recipe recipe = uniform("nvfp4 1x16 tensor=delayed");
    for (const auto& [tokens, in, out] : {std::array<int64_t, 3>{256, 256, 128}, {90, 77, 53}}) {
        const QuantLinear layer(recipe, in, out, 7);
        AmaxHistory on_cpu, on_gpu;
        test::LinearInput input = random_input(tokens, in, out);
        for (uint32_t step = 0; step < 3; ++step) {
            const Tensor w = input.w.tensor();
            for (float& value : w.span<float>()) value *= 1.5f;
            const test::Keys keys = {.step = step};
            const test::LinearOutput expected = test::run_linear(layer, input, keys, 2, &on_cpu);
            const test::LinearOutput found = test::run_linear(layer, input, keys, 2, &on_gpu, Device::cuda);
            expect_same(found, expected, fmt::format("step {}", step));
            EXPECT_EQ(on_gpu, on_cpu) << "step " << step;
        }
        EXPECT_GT(on_gpu.previous[1], 0.0f);
    }
}

TEST_F(LinearLayers, SplitOffOutliersAsOnTheCpu) {
    Recipe recipe = find_recipe("bf16");
    recipe.fprop_x.spec = recipe.fprop_w.spec = parse_spec("nvfp4 1x16");
    for (const char* product : {"bf16", "fp32"}) {
        recipe.outliers = {0.97, parse_spec(product)};
        expect_as_on_the_cpu(recipe, 90, 77, 53);
    }
}

// Who is shown the operands changes nothing of what is multiplied.
TEST_F(LinearLayers, AreTheSameToTheBitUnderAnObserver) {
    for (const char* name : {"quartet2", "quartet", "nvidia", "halo", "tetrajet2", "jetfire", "dge-occ"}) {
        const Recipe recipe = find_recipe(name);
        QuantLinear layer(recipe, 77, 53, 7);
        const test::LinearInput input = random_input(90, 77, 53);
        const auto run = [&] { return test::run_linear(layer, input, {}, 2, nullptr, Device::cuda); };
        const test::LinearOutput alone = run();
        int seen = 0;
        layer.observe([&](Context& context, const QuantLinear::Observation& observation) {
            if (context.planning() || observation.quantized == nullptr) return;
            EXPECT_NE(observation.quantized->codes.data, nullptr) << name << " " << observation.operand;
            ++seen;
        });
        const test::LinearOutput observed = run();
        EXPECT_GT(seen, 0) << name;
        EXPECT_EQ(observed.y, alone.y) << name;
        EXPECT_EQ(observed.dx, alone.dx) << name;
        EXPECT_EQ(observed.dw, alone.dw) << name;
    }
}

}  // namespace
}  // namespace nibble
