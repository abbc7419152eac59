// Transformer: the whole model. Parameters are FP32 masters; one call makes the loss and all gradients.
#pragma once

#include <string>
#include <vector>

#include "core/core.h"
#include "nn/cross_entropy.h"
#include "nn/model_config.h"
#include "nn/quant_linear.h"
#include "recipe/recipe.h"

namespace nibble {

// One trained tensor. Fused projections are one parameter: `qkv` holds the rows of q, k and v, `gate_up` those of
// gate and up; train/model_directory splits them under their Hugging Face names.
struct Parameter {
    std::string name;        // "layers.3.attention.qkv"
    Tensor master, gradient; // F32
    bool is_matrix = false;  // a linear layer inside a block (decayed by default)
};

class Transformer {
  public:
    struct Options {
        DType activations = DType::bf16;  // or F32, for study
    };

    // `recipe` is copied. Parameters are allocated, zero; call initialize() or load them.
    Transformer(const ModelConfig& config, const Recipe& recipe, const Options& options);

    // N(0, initializer_range); output projections (attention out, down) scaled by 1/sqrt(2 layers); norms 1.
    // Counter-based: each element is a function of (seed, parameter, index) alone.
    void initialize(uint64_t seed);

    std::vector<Parameter>& parameters() { return parameters_; }
    const ModelConfig& config() const { return config_; }
    const Recipe& recipe() const { return recipe_; }

    // Once per optimizer step, before its micro-steps: quantises the weights. They live in context.arena until the
    // caller's ArenaScope ends.
    void begin_step(Context& context);

    // Adds the gradients of scale * (summed loss) to the parameters' gradients and returns the loss.
    // tokens, targets: I32 [sequences, length].
    HeadLoss forward_backward(Context& context, const Tensor& tokens, const Tensor& targets, float scale);
    // The loss alone. Uses the weights of begin_step().
    HeadLoss forward(Context& context, const Tensor& tokens, const Tensor& targets);
    // F32 [V] logits of the last position of each row: [sequences, V].
    void logits(Context& context, const Tensor& tokens, const Tensor& out);

  private:
    ModelConfig config_;
    Recipe recipe_;
    Options options_;
    std::vector<Parameter> parameters_;
};

}  // namespace nibble
