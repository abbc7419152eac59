#include "nn/product_way.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

AllowedProducts allowed(std::vector<std::string> names) { return parse_allowed(names); }

TEST(AllowedProducts, AreNoneUnlessTheyAreNamed) {
    const AllowedProducts none = allowed({});
    EXPECT_FALSE(none.fp8 || none.fp8_folded || none.fp8_fast_accumulation);
    const AllowedProducts two = allowed({"fp8-folded", "fp8-fast-accumulation"});
    EXPECT_TRUE(!two.fp8 && two.fp8_folded && two.fp8_fast_accumulation);
    EXPECT_EQ(two.sums(), Fp8Sums::fast);
    EXPECT_EQ(allowed({"fp8"}).sums(), Fp8Sums::precise);
}

TEST(AllowedProducts, HaveOnlyNamesThatMeanSomething) {
    EXPECT_THROW(allowed({"fp4"}), UsageError);
    EXPECT_THROW(allowed({"fp8-fast-accumulation"}), UsageError);
}

TEST(ProductWays, OfACpuAreExactWhateverIsAllowed) {
    const AllowedProducts all = allowed({"fp8", "fp8-folded"});
    for (const Recipe& recipe : builtin_recipes())
        EXPECT_EQ(product_way(recipe.fprop_x, recipe.fprop_w, all, Device::cpu), ProductWay::emulated);
}

// Of the built-in recipes, and only on a GPU with FP8.
TEST(ProductWays, OfAGpuFollowWhatIsAllowed) {
    if (!has_fp8_products(Device::cuda)) GTEST_SKIP() << "there is no GPU that multiplies FP8";
    const auto way = [](const char* recipe, std::vector<std::string> names) {
        const Recipe r = find_recipe(recipe);
        return product_way(r.dgrad_dy, r.dgrad_w, allowed(std::move(names)), Device::cuda);
    };
    EXPECT_EQ(way("fp8", {}), ProductWay::emulated);
    EXPECT_EQ(way("fp8", {"fp8"}), ProductWay::fp8);
    EXPECT_EQ(way("fp8", {"fp8-folded"}), ProductWay::emulated);
    EXPECT_EQ(way("quartet", {"fp8"}), ProductWay::emulated);
    EXPECT_EQ(way("quartet", {"fp8-folded"}), ProductWay::folded);
    EXPECT_EQ(way("tetrajet", {"fp8", "fp8-folded"}), ProductWay::folded);
    EXPECT_EQ(way("mxfp8", {"fp8", "fp8-folded"}), ProductWay::emulated);
    EXPECT_EQ(way("nvidia", {"fp8", "fp8-folded"}), ProductWay::emulated);
    // E5M2 by E5M2 has no instruction in the library.
    OperandSpec e5m2;
    e5m2.spec = parse_spec("fp8:e5m2 tensor");
    EXPECT_EQ(product_way(e5m2, e5m2, allowed({"fp8"}), Device::cuda), ProductWay::emulated);
}

}  // namespace
}  // namespace nibble
