// Linear layers on a GPU against those of the CPU: their operands have the same bytes, so that only the order
// of FP32 sums differs.
#include "nn/quant_linear.h"

#include "support/linear_run.h"
#include "support/on_gpu.h"
#include "support/samples.h"

namespace nibble {
namespace {

using LinearLayers = OnGpu;

void expect_as_on_the_cpu(const Recipe& recipe, int64_t tokens, int64_t in, int64_t out) {
    const auto normal = [](DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
        return test::Matrix(dtype, rows, cols, test::normals(rows * cols, seed));
    };
    const test::LinearInput input = {normal(DType::bf16, tokens, in, 1), normal(DType::f32, out, in, 2),
                                     normal(DType::bf16, tokens, out, 3)};
    const QuantLinear layer(recipe, in, out, 7);
    const auto run = [&](Device device) { return test::run_linear(layer, input, {}, 2, nullptr, device); };
    const test::LinearOutput expected = run(Device::cpu), found = run(Device::cuda);
    EXPECT_LT(test::relative_error(found.y, expected.y), 2e-6) << recipe.name << ", y";
    EXPECT_LT(test::relative_error(found.dx, expected.dx), 2e-6) << recipe.name << ", dx";
    EXPECT_LT(test::relative_error(found.dw, expected.dw), 2e-6) << recipe.name << ", dw";
}

TEST_F(LinearLayers, AreTheCpusInEveryRecipe) {
    for (const Recipe& recipe : builtin_recipes()) {
        const bool needs_history = QuantLinear(recipe, 64, 64, 0).needs_history();
        if (needs_history || recipe.outliers || recipe.wgrad_factor) continue;  // on the CPU only
        expect_as_on_the_cpu(recipe, 256, 256, 128);
        expect_as_on_the_cpu(recipe, 90, 77, 53);
    }
}

}  // namespace
}  // namespace nibble
