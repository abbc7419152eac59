// What training on a GPU begins with, and `nibble doctor` shows.
#include "train/self_check.h"

#include "gemm/matmul.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

using SelfCheckOnGpu = OnGpu;

void expect_well(const KernelCheck& check) { EXPECT_LE(check.error, check.most) << check.name; }

TEST_F(SelfCheckOnGpu, FindsTheKernelsOfPassLossAndUpdateWell) {
    for (const DType activations : {DType::f32, DType::bf16})
        for (const bool deterministic : {true, false})
            for (const KernelCheck& check : check_kernels({activations, deterministic, Fp8Sums::precise}))
                expect_well(check);
    for (const DType dtype : {DType::f32, DType::bf16}) expect_well(check_update(dtype, dtype));
    expect_well(check_modifiers());
}

TEST_F(SelfCheckOnGpu, FindsTheHeadOnFp8TensorCoresNear) {
    if (!has_fp8_products(Device::cuda)) GTEST_SKIP() << "this GPU does not multiply FP8";
    for (const DType activations : {DType::f32, DType::bf16})
        for (const Fp8Sums sums : {Fp8Sums::precise, Fp8Sums::fast})
            expect_well(check_head(activations, {.operands = HeadOperands::fp8, .fp8 = sums}));
}

TEST_F(SelfCheckOnGpu, FindsTheLayersOfEveryRecipeWell) {
    for (const Recipe& recipe : builtin_recipes()) expect_well(check_layer(recipe));
}

TEST_F(SelfCheckOnGpu, FindsALayerWellThatScalesByTheStepBefore) {
    Recipe recipe = find_recipe("nvidia");
    operand(recipe, "fprop.x").spec.tensor = TensorScale::delayed;
    expect_well(check_layer(recipe));
}

TEST_F(SelfCheckOnGpu, FindsLayersInFp8Near) {
    for (const char* recipe : {"fp8", "quartet", "quartet-sr", "tetrajet"}) {
        expect_well(check_layer(find_recipe(recipe), {.fp8 = true, .fp8_folded = true}));
        expect_well(check_layer(find_recipe(recipe),
                                {.fp8 = true, .fp8_folded = true, .fp8_fast_accumulation = true}));
    }
}

}  // namespace
}  // namespace nibble
