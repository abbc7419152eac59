#include "train/run_header.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "recipe/recipe.h"

namespace nibble {
namespace {

// "fprop" or another product, as a device executes it.
std::string executed(const Recipe& recipe, std::string_view product, Device device) {
    for (const auto& one : describe_products(recipe, DType::bf16, device))
        if (one.at("product") == product) return one.at("executed");
    return "nothing";
}

constexpr const char *kByGroups =
                         "emulated: exact products in bf16, sums of groups times their scales in f32",
                     *kInF32 = "emulated: products of values with f32 scales in f32, sums in f32";

TEST(RunHeader, SaysHowOperandsWithFp32ScalesAlongTheSumAreMultiplied) {
    for (const char* name : {"tetrajet2", "jetfire"}) {
        for (const char* product : {"fprop", "dgrad", "wgrad"}) {
            EXPECT_EQ(executed(find_recipe(name), product, Device::cuda), kByGroups)
                << name << " " << product;
            EXPECT_EQ(executed(find_recipe(name), product, Device::cpu), kInF32) << name << " " << product;
        }
    }
}

// Whether the backward names their spec or reads them as plain values.
TEST(RunHeader, SaysThatTilesOfTheForwardAreMultipliedByGroups) {
    Recipe recipe = find_recipe("jetfire");
    recipe.dgrad_w = {Source::forward, parse_spec("bf16")};
    EXPECT_EQ(executed(recipe, "dgrad", Device::cuda), kByGroups);
}

// What has the same bits with one scale for the tensor is read as plain values.
TEST(RunHeader, SaysThatAGpuMultipliesOtherOperandsOfTheForwardInF32) {
    Recipe recipe = find_recipe("fp8");
    recipe.dgrad_dy.spec = parse_spec("fp8:e5m2 1x128");
    EXPECT_EQ(executed(recipe, "dgrad", Device::cuda), kInF32);
    recipe = find_recipe("nvidia");
    recipe.fprop_x.spec = parse_spec("fp4 row");
    recipe.fprop_w.spec = parse_spec("fp4 32x32");
    EXPECT_EQ(executed(recipe, "fprop", Device::cuda), kInF32);
}

}  // namespace
}  // namespace nibble
