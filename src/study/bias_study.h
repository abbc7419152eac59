// Is a recipe's weight gradient unbiased? The error of the mean over B draws of signs and coins falls as 1/B
// where it is; a bias shows as a floor (arXiv 2601.22813, section 3.3 and its unbiasedness figure).
#pragma once

#include <array>
#include <span>
#include <vector>

#include "study/linear_study.h"

namespace nibble {

// Data on which methods differ. T tokens in chunks of 128.
enum class BiasData {
    normal,
    laplace,
    student_t5,
    student_t2,     // every entry of x and dy heavy-tailed
    few_tokens,     // dy is zero but for a few tokens of each chunk: masked losses, rare experts
    massive_token,  // the first token of a chunk is 100 times larger in x, and dy sees only another token
};

inline constexpr int64_t kTokensOfChunk = 128;
// It matters which tokens are active. A chunk that is zero but for tokens a and b becomes x_a ± x_b after one
// Hadamard rotation, with the sign (-1)^popcount(i & (a xor b)) at place i. Where a and b are equal modulo 16
// it is the same in all of a group of 16: the group has one magnitude, and MS-EDEN no bias.
inline constexpr std::array<int64_t, 2> kActiveTokens = {5, 70};

// active: places in a chunk, for few_tokens alone.
LayerData bias_data(BiasData kind, int64_t tokens, int64_t in, int64_t out, uint64_t seed = 1,
                    std::span<const int64_t> active = kActiveTokens);

struct BiasCurve {
    std::vector<int> draws;     // 1, 4, 16, ... and the last
    std::vector<double> error;  // |mean of that many dW - target|² / |target|²

    // How much of 1/B is missing at the end: error(B) * B / error(1); 1 if unbiased.
    double excess() const;
    // The squared relative bias that the last point implies, error(B) = variance / B + bias.
    double bias() const;
};
// The target is the gradient of what the forward used: the recipe's own dW with both of its operands left
// unquantised, averaged too where the forward draws. draws >= 2. Throws Error where the target is zero.
BiasCurve averaged_gradient(const Recipe& recipe, const LayerData& data, int draws, uint64_t seed = 1);
// False if every draw of dW is the same: there is nothing to average.
bool has_random_gradient(const Recipe& recipe);

}  // namespace nibble
