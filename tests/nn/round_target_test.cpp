// A layer whose weight is rounded towards another matrix (Q-EMA), in its forward and in what is made from it.
#include <gtest/gtest.h>

#include <map>

#include "nn/quant_linear.h"
#include "support/samples.h"

namespace nibble {
namespace {

using Operands = std::map<std::string, std::vector<float>>;

// The values of fprop.w and dgrad.w, back from their codes.
Operands prepared(std::string_view recipe_name, std::vector<float> target) {
    const Recipe recipe = find_recipe(recipe_name);
    QuantLinear layer(recipe, 64, 48, 0);
    std::vector<float> w = test::normals(48 * 64);
    Operands values;
    Arena arena(1 << 20), scratch(1 << 16);
    Context context{arena};
    layer.observe([&](Context&, const QuantLinear::Observation& seen) {
        Context other{scratch};
        const QuantizedMatrix& q = *seen.quantized;
        std::vector<float>& to = values[std::string(seen.operand)];
        to.resize(static_cast<size_t>(q.rows * q.padded_cols));
        dequantize(other, q, view_of(to, {q.rows, q.padded_cols}));
    });
    layer.prepare(context, view_of(w, {48, 64}), nullptr,
                  target.empty() ? Tensor{} : view_of(target, {48, 64}));
    return values;
}

TEST(RoundTarget, MovesTheForwardsWeightToTheNeighbourOnItsSide) {
    const std::vector<float> above(48 * 64, 100.0f), below(48 * 64, -100.0f), w = test::normals(48 * 64);
    for (const char* recipe : {"quartet2", "nvidia", "tetrajet"}) {
        const std::vector<float> up = prepared(recipe, above)["fprop.w"];
        const std::vector<float> down = prepared(recipe, below)["fprop.w"];
        const std::vector<float> nearest = prepared(recipe, {})["fprop.w"];
        size_t moved = 0;
        for (size_t i = 0; i < w.size(); ++i) {
            EXPECT_TRUE(nearest[i] == up[i] || nearest[i] == down[i]) << recipe << " " << i;
            EXPECT_LE(down[i], up[i]) << recipe << " " << i;
            moved += up[i] != down[i];
        }
        EXPECT_GT(moved, w.size() * 9 / 10) << recipe;
    }
}

TEST(RoundTarget, ReachesTheBackwardsWeightThatIsMadeFromTheForwards) {
    const std::vector<float> above(48 * 64, 100.0f);
    EXPECT_NE(prepared("tetrajet", above)["dgrad.w"], prepared("tetrajet", {})["dgrad.w"]);
    // That of fp4-all-the-way is made from the original.
    EXPECT_EQ(prepared("fp4-all-the-way", above)["dgrad.w"], prepared("fp4-all-the-way", {})["dgrad.w"]);
}

}  // namespace
}  // namespace nibble
