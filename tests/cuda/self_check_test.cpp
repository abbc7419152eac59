// What training on a GPU begins with, and `nibble doctor` shows.
#include "train/self_check.h"

#include "support/on_gpu.h"

namespace nibble {
namespace {

using SelfCheckOnGpu = OnGpu;

void expect_well(const KernelCheck& check) { EXPECT_LE(check.error, check.most) << check.name; }

TEST_F(SelfCheckOnGpu, FindsTheKernelsOfPassLossAndUpdateWell) {
    for (const DType activations : {DType::f32, DType::bf16})
        for (const KernelCheck& check : check_kernels(activations)) expect_well(check);
    expect_well(check_update());
    expect_well(check_modifiers());
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
    for (const char* recipe : {"fp8", "quartet"}) {
        expect_well(check_layer(find_recipe(recipe), {.fp8 = true, .fp8_folded = true}));
        expect_well(check_layer(find_recipe(recipe),
                                {.fp8 = true, .fp8_folded = true, .fp8_fast_accumulation = true}));
    }
}

}  // namespace
}  // namespace nibble
