// Self-check: whether the kernels of this machine's GPU compute what their CPU forms do. `nibble doctor`
// shows it; training on a GPU begins with kernels of the kinds that the run uses.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nn/nn.h"
#include "nn/product_way.h"
#include "recipe/recipe.h"

namespace nibble {

// One kernel, or some that belong together, on the first GPU and on the CPU, with the same small input.
struct KernelCheck {
    std::string name;  // "rmsnorm, bf16"
    double error = 0;  // largest_difference()
    double most = 0;   // what other roundings and another order of sums explain, with room

    bool is_well() const { return error <= most; }
};

// The largest difference as a share of the largest magnitude that is expected; infinite where a number of
// either is not finite.
double largest_difference(std::span<const double> expected, std::span<const double> found);

struct KernelKinds {
    DType activations = DType::bf16;  // or F32
    bool deterministic_attention = true;
    std::optional<Fp8Sums> head_sums = {};  // of a head in FP8, where it is multiplied in FP8
};
// What the pass and the loss of every model are made of, but for linear layers.
std::vector<KernelCheck> check_kernels(const KernelKinds& kinds);
// Of these, attention, whose backward adds in a fixed order or in any.
KernelCheck check_attention(DType activations, bool deterministic);
// And the head: its products, the loss and their gradients.
KernelCheck check_head(DType activations, const HeadOptions& options);
// The norm of gradients, clipping and AdamW.
KernelCheck check_update(DType gradients = DType::f32, DType moments = DType::f32);
// The stateful parts that a recipe may add: cage, qema, oscireset, smooth-swiglu.
KernelCheck check_modifiers();
// A linear layer under a recipe: its operands, all three products, and what finishes them. `allowed`: as in
// the run.
KernelCheck check_layer(const Recipe& recipe, const AllowedProducts& allowed = {});

// All of these, of every kind, the layers of all built-in recipes, and what FP8 tensor cores multiply where
// the GPU has them.
std::vector<KernelCheck> check_everything();

// Throws Error, one line that names the first that is not well.
void require_well(std::span<const KernelCheck> checks);

}  // namespace nibble
