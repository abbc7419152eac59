// What a recipe does to one linear layer, Y = X Wᵀ: errors of its three products, and how they average.
#pragma once

#include <cstdint>
#include <vector>

#include "core/core.h"
#include "recipe/recipe.h"
#include "study/samples.h"

namespace nibble {

// One layer's data, F32: x [T, K], w [N, K], dy [T, N].
struct LayerData {
    Buffer x, w, dy;
};
LayerData random_layer(int64_t tokens, int64_t in, int64_t out, Distribution distribution, uint64_t seed = 1);

struct LayerProducts {
    std::vector<float> y, dx, dw;  // [T, N], [T, K], [N, K]
};
// One forward and backward of the layer at `step`, which draws signs and coins. Outputs are F32.
LayerProducts run_layer(const Recipe& recipe, const LayerData& data, uint64_t seed, uint32_t step);
// Every operand the FP32 original.
LayerProducts exact_products(const LayerData& data);

// The recipe with the four operands of its backward left unquantised: its gradients are those that the
// recipe's own estimate, of what the forward multiplied where they are made from it.
Recipe with_unquantized_backward(Recipe recipe);

// Relative errors |a - b| / |b| (Frobenius) against the exact products: of one draw, and of the mean of
// several, with the slope <mean, exact> / <exact, exact> (1: nothing is lost along the gradient).
struct LayerErrors {
    double y = 0, dx = 0, dw = 0;
    double own_dx = 0, own_dw = 0;  // of one draw, against the gradients of with_unquantized_backward()
    double mean_dx = 0, mean_dw = 0, slope_dx = 0, slope_dw = 0;
};
// draws >= 1. A recipe without coins and random signs is run once.
LayerErrors layer_errors(const Recipe& recipe, const LayerData& data, const LayerProducts& exact, int draws,
                         uint64_t seed = 1);

// True if two steps can give an operand, or any of a recipe's, other bits of the same data.
bool is_random(const QuantSpec& spec);
bool is_random(const Recipe& recipe);

double relative_error(const std::vector<float>& a, const std::vector<float>& b);
double relative_error(const std::vector<double>& a, const std::vector<float>& b);

}  // namespace nibble
