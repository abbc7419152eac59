// QuantLinear: one linear layer, Y[T,N] = X[T,K] · W[N,K]ᵀ, executed by any recipe (docs/numerics.md, section 7).
//
//   product   rows    contraction   operands
//   fprop     T x N   K             x [T,K],            w [N,K]
//   dgrad     T x K   N             dy [T,N],           w [K,N] (transposed)
//   wgrad     N x K   T             dy [N,T] (transp.), x [K,T] (transposed)
#pragma once

#include <cstdint>
#include <string>

#include "core/core.h"
#include "gemm/matmul.h"
#include "quant/quant.h"
#include "recipe/recipe.h"

namespace nibble {

class QuantLinear {
  public:
    // `layer` keys the randomness; `recipe` must outlive the layer.
    QuantLinear(const Recipe& recipe, int64_t in, int64_t out, uint16_t layer);

    // What one optimizer step needs of the weight: its forward copy and, where signs allow, its dgrad copy.
    // Made from the FP32 master by prepare(), kept in the arena for all micro-batches of the step.
    struct Weight {
        Tensor master;           // F32 [N, K]
        Tensor bf16;             // the rounded master, for plain operands
        QuantizedMatrix fprop;   // for quantised ones
        QuantizedMatrix dgrad;   // [K, N]; empty when it is made afresh in each micro-step
    };
    // What backward needs of one forward: the packed copy (4.5 bits an element) or the BF16 tensor itself.
    struct Saved {
        Tensor x;                // the caller's tensor, when the recipe's backward reads the original
        QuantizedMatrix fprop_x; // the forward's bytes
        QuantizedMatrix wgrad_x; // quantised during the forward along T, when made from the original
    };

    // Allocates from context.arena; the result lives until the caller's enclosing ArenaScope ends.
    Weight prepare(Context& context, const Tensor& master) const;
    // x: BF16 or F32 [T, K]; y: the same dtype [T, N]. Allocates what Saved holds from context.arena.
    Saved forward(Context& context, const Weight& weight, const Tensor& x, const Tensor& y) const;
    // dy: [T, N]; dx: [T, K] (overwritten; no data: not wanted); dw: F32 [N, K] (accumulated).
    void backward(Context& context, const Weight& weight, const Saved& saved, const Tensor& dy, const Tensor& dx,
                  const Tensor& dw) const;

    int64_t in() const { return in_; }
    int64_t out() const { return out_; }

  private:
    const Recipe* recipe_;
    int64_t in_, out_;
    uint16_t layer_;
};

}  // namespace nibble
