// QuantLinear: one linear layer, Y[T,N] = X[T,K] · W[N,K]ᵀ, executed by any recipe (docs/numerics.md, section
// 7).
//
//   product   rows    contraction   operands
//   fprop     T x N   K             x [T,K],            w [N,K]
//   dgrad     T x K   N             dy [T,N],           w [K,N] (transposed)
//   wgrad     N x K   T             dy [N,T] (transp.), x [K,T] (transposed)
//
// Where a backward operand is made from the forward, dX and dW are gradients of what the forward multiplied;
// they are then masked and turned back to X and W (recipe.h, Finish). T, K and N are any size: what
// quantisers need is padded with zeros here.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "core/core.h"
#include "gemm/matmul.h"
#include "nn/amax_history.h"
#include "nn/product_way.h"
#include "quant/fp8_codes.h"
#include "quant/quant.h"
#include "recipe/recipe.h"

namespace nibble {

// Whether what layers do on a GPU under this recipe depends on step and micro-step through Context::counters
// alone, so that it can be recorded. Not where a rotation is undone whose signs change from step to step: the
// host hands these over.
bool is_replayable(const Recipe& recipe);

class QuantLinear {
  public:
    // `layer` keys the randomness; `recipe` must outlive the layer. `allowed`: ways of multiplying on a GPU
    // beside exact ones, where in and out are multiples of kFp8Multiple. Throws UsageError as validate()
    // does.
    QuantLinear(const Recipe& recipe, int64_t in, int64_t out, uint16_t layer,
                const AllowedProducts& allowed = {});
    QuantLinear(const Recipe&&, int64_t, int64_t, uint16_t, const AllowedProducts& = {}) = delete;

    // What one optimizer step needs of the weight: its forward copy and, where signs allow, its dgrad copy.
    // Made from the FP32 master by prepare(), kept in the arena for all micro-batches of the step.
    struct Weight {
        Tensor master;          // F32 [N, K]
        Tensor bf16;            // the rounded master, where an operand is plain
        QuantizedMatrix fprop;  // [N, K], where the forward quantises
        QuantizedMatrix dgrad;  // [K, N]; unused when it is made afresh in each micro-step; or the codes of
                                // fprop in its place, transposed for a product in FP8
        // fprop and dgrad as FP8 codes, where products read them so (product_way.h).
        std::optional<FoldedMatrix> folded_fprop, folded_dgrad;
        Tensor outlier_product;  // BF16 or F32 [K, N], what outliers of x are multiplied with
        AmaxHistory* history = nullptr;
        Tensor amax;  // F32 [6], what this step's history will receive when it is trained; no shape: none
    };
    // What backward needs of one forward: the packed copy (4.5 bits an element) or the caller's tensor
    // itself.
    struct Saved {
        Tensor x;                 // the caller's, when the recipe's backward reads the original
        QuantizedMatrix fprop_x;  // the forward's bytes
        QuantizedMatrix wgrad_x;  // quantised during the forward along T, when made from the original; or the
                                  // codes of fprop_x in its place, transposed for a product in FP8
    };

    // Allocates from context.arena; the result lives until the caller's enclosing ArenaScope ends.
    // `history` is for recipes with tensor=delayed (needs_history()). round_target: F32 [N, K], what the
    // forward's copy is rounded towards (quant/round_towards.h); no shape: it is rounded as its spec says.
    // on_gpu: Keep::operand for speed, Keep::bytes where 4.5 bits an element are kept of each copy and every
    // product expands them.
    Weight prepare(Context& context, const Tensor& master, AmaxHistory* history = nullptr,
                   const Tensor& round_target = {}, Keep on_gpu = Keep::operand) const;
    // What a forward is for. `first` and `second` are those of a layer whose input does not stay for its
    // backward and is made again there: given the same x, `second` saves what `train` would have.
    enum class Use : uint8_t {
        train,     // saves what backward needs
        evaluate,  // saves nothing, and leaves the history alone
        first,     // saves nothing
        second,    // as `train`; the forward's operands are not shown to the observer again
    };
    // x: BF16 or F32 [T, K]; y: BF16 or F32 [T, N] (a default Tensor: not wanted). Allocates what Saved holds
    // from context.arena. x_amax: max|x|, where its producer knows it, in memory of the context's device.
    Saved forward(Context& context, const Weight& weight, const Tensor& x, const Tensor& y,
                  Use use = Use::train, const float* x_amax = nullptr) const;
    // dy: [T, N]; dx: [T, K] (overwritten; a default Tensor: not wanted); dw: F32 [N, K] (accumulated).
    // dy_amax: as x_amax.
    void backward(Context& context, const Weight& weight, const Saved& saved, const Tensor& dy,
                  const Tensor& dx, const Tensor& dw, const float* dy_amax = nullptr) const;

    int64_t in() const { return in_; }
    int64_t out() const { return out_; }
    bool needs_history() const;

    // An operand of a product as it is made, and what it is made from: for statistics and tests.
    struct Observation {
        uint16_t layer;
        std::string_view operand;          // "dgrad.w"
        const QuantizedMatrix* quantized;  // null: the product reads `source` itself
        Tensor source;                     // [rows, contraction]; padding may be missing
        bool is_transposed;                // source is stored [contraction, rows]
        float scale;                       // `scale` times source is meant
        const SignBits* signs;             // of the rotation between source and quantized
    };
    // Called in planning passes, too: scratch comes from the context's arena.
    using Observer = std::function<void(Context& context, const Observation& observation)>;
    void observe(Observer observer) { observer_ = std::move(observer); }
    // Fixes the rotation signs of a product instead of drawing them: for tests against recorded layers.
    void fix_signs(Gemm gemm, const SignBits& signs) { fixed_signs_[static_cast<size_t>(gemm)] = signs; }

  private:
    class Execution;

    const Recipe* recipe_;
    int64_t in_, out_;
    uint16_t layer_;
    AllowedProducts allowed_;
    std::array<std::optional<SignBits>, 3> fixed_signs_;
    Observer observer_;
};

}  // namespace nibble
