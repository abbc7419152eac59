// Self-check: whether the kernels of this machine's GPU compute what their CPU forms do. `nibble doctor`
// shows it; training on a GPU begins with the part that the run needs.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "nn/product_way.h"
#include "recipe/recipe.h"

namespace nibble {

// One kernel, or some that belong together, on the first GPU and on the CPU, with the same small input.
struct KernelCheck {
    std::string name;  // "rmsnorm, bf16"
    double error = 0;  // the largest difference, as a share of the largest number; infinite: a NaN, on one
    double most = 0;   // what other roundings and another order of sums explain

    bool is_well() const { return error <= most; }
};

// What the pass and the loss of every model are made of, but for linear layers. Activations: BF16 or F32.
std::vector<KernelCheck> check_kernels(DType activations);
// The norm of gradients, clipping and AdamW.
KernelCheck check_update();
// The stateful parts that a recipe may add: cage, qema, oscireset, smooth-swiglu.
KernelCheck check_modifiers();
// A linear layer under a recipe: its operands, all three products, and what finishes them. `allowed`: as in
// the run.
KernelCheck check_layer(const Recipe& recipe, const AllowedProducts& allowed = {});

// Throws Error, one line that names the first that is not well.
void require_well(std::span<const KernelCheck> checks);

}  // namespace nibble
