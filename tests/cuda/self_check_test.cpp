// What training on a GPU begins with, and `nibble doctor` shows.
#include "train/self_check.h"

#include <algorithm>

#include "gemm/matmul.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

using SelfCheckOnGpu = OnGpu;

void expect_well(const KernelCheck& check) { EXPECT_LE(check.error, check.most) << check.name; }

TEST_F(SelfCheckOnGpu, FindsEveryKernelWellAndNamesIt) {
    std::vector<std::string> names;
    for (const KernelCheck& check : check_everything()) {
        expect_well(check);
        names.push_back(check.name);
    }
    std::vector<std::string> expected = {
        "modifiers",
        "norm of gradients, clipping and adamw",
        "norm of gradients, clipping and adamw, gradients in bf16",
        "norm of gradients, clipping and adamw, moments in bf16",
        "norm of gradients, clipping and adamw, gradients in bf16, moments in bf16",
        "head and loss of logits in bf16, bf16"};
    for (const char* kernel : {"embedding", "rmsnorm", "bias and rope", "bias and rope of neighbours",
                               "norms of queries and keys", "attention", "attention, gradients in any order",
                               "swiglu", "head and loss", "head in fp8 and loss"})
        for (const char* type : {"f32", "bf16"}) expected.push_back(fmt::format("{}, {}", kernel, type));
    for (const Recipe& recipe : builtin_recipes()) expected.push_back("linear layer of " + recipe.name);
    if (has_fp8_products(Device::cuda)) {
        for (const char* sums : {"", " with fast sums"}) {
            for (const char* recipe : {"fp8", "quartet", "quartet-sr", "tetrajet"})
                expected.push_back(fmt::format("linear layer of {}, fp8{}", recipe, sums));
            for (const char* type : {"f32", "bf16"})
                expected.push_back(
                    fmt::format("head in fp8 and loss, on fp8 tensor cores{}, {}", sums, type));
        }
    }
    std::ranges::sort(names);
    std::ranges::sort(expected);
    EXPECT_EQ(names, expected);
}

TEST_F(SelfCheckOnGpu, FindsALayerWellThatScalesByTheStepBefore) {
    Recipe recipe = find_recipe("nvidia");
    operand(recipe, "fprop.x").spec.tensor = TensorScale::delayed;
    expect_well(check_layer(recipe));
}

}  // namespace
}  // namespace nibble
